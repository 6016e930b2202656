// Uses the report in the frame as a reader would, and leaves what it saw in the body's data-shown.
const frame = document.querySelector("iframe");
const press = (page, table, name) => {
  const button = Array.from(table.querySelectorAll("thead button")).find((b) => b.textContent === name);
  button.focus();
  button.click();
  const column = button.closest("th");
  return {
    focused: page.activeElement === button,
    sort: column.getAttribute("aria-sort"),
    sorted: table.querySelectorAll("[aria-sort]").length,
    cells: Array.from(table.tBodies[0].rows, (row) => row.cells[column.cellIndex].textContent),
  };
};
frame.addEventListener("load", () => {
  const page = frame.contentDocument, all = (selector) => Array.from(page.querySelectorAll(selector));
  all("details").forEach((part) => { part.open = true; });
  const drawn = (chart) => chart.getBBox().width > 0 && chart.querySelectorAll("path").length > 4;
  const ids = all("[id]").map((element) => element.id);
  const used = all("use").map((use) => use.getAttribute("xlink:href").slice(1));
  const heading = all("h3").find((h) => h.textContent === "Each class");
  const classes = heading.nextElementSibling.querySelector("table");
  document.body.dataset.shown = JSON.stringify({
    width: frame.contentWindow.innerWidth,
    page: page.documentElement.scrollWidth,
    title: page.title,
    images: all('img:not([src^="data:"])').length,
    charts: all("figure svg").length,
    empty: all("figure svg").filter((chart) => !drawn(chart)).length,
    lost: used.filter((id) => !ids.includes(id)).length,
    twice: ids.length - new Set(ids).size,
    links: all("nav a").every((a) => page.getElementById(a.hash.slice(1))),
    hovered: all("svg title").map((title) => title.textContent),
    up: press(page, classes, "recall, %"),
    down: press(page, classes, "recall, %"),
    names: press(page, classes, "class"),
  });
  new Image().src = "http://asked.invalid/by-the-driver.png";
});
