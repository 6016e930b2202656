"""Charts as inline SVG, drawn by matplotlib. Colours are the page's: they follow its light or dark theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report.parts import Chart
from stages.runtime.terminal import printable

INK, GRID = "#0a0b01", "#0a0b02"  # stand for the page's colours of text and of faint lines
COLOURS = tuple(f"#0a0c{i:02x}" for i in range(8))  # stand for the page's colours of data
GREY = "#0a0b03"
_PAGE_COLOURS = {INK: "currentColor", GRID: "var(--grid)", GREY: "var(--muted)"} | {
    colour: f"var(--data{i})" for i, colour in enumerate(COLOURS)
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "reskd",  # equal charts are equal bytes
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]")  # what XML can't hold
_COLOUR = re.compile(r"#0a0[bc][0-9a-f]{2}")
_DECIMALS = re.compile(r"(\d+\.\d)\d+")

Names = dict[str, str]  # id of a drawn thing -> the text that is shown when the pointer is on it


def draw(
    caption: str, paint: Callable[[Axes, Names], None], *, size: tuple[float, float] = (6.4, 3.8), note: str = ""
) -> Chart:
    """A chart that `paint` draws into its axes. `size`: width and height in units of 72 px.

    What `paint` gives an id by `set_gid` can have a name in the dict that it gets, too.
    """
    buffer, names = io.StringIO(), {}
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that matplotlib's font lacks: the browser has its own fonts
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots(), names)
        figure.savefig(buffer, format="svg", dpi=144, metadata={"Date": None})
    return Chart(caption, _inline(buffer.getvalue(), names, caption), note)


def _inline(svg: str, names: Names, caption: str) -> str:
    """The element `svg` alone, fit for HTML: no styles or metadata of its own, ids with a prefix, names as titles."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(_UNPRINTABLE.sub("", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _make_local(element, names)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    width = float(root.attrib["viewBox"].split()[2])
    style = f"min-width: {0.85 * width:.0f}px; max-width: {1.5 * width:.0f}px"  # of a phone, of a wide screen
    root.attrib |= {"role": "img", "aria-label": printable(caption), "style": style}
    return ElementTree.tostring(root, encoding="unicode")


def _make_local(element: ElementTree.Element, names: Names) -> None:
    """Prefix the ids, name what has a name, and exchange colours and fonts."""
    attributes = element.attrib
    if (name := names.get(attributes.get("id", ""))) is not None:
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = printable(name)
        element.insert(0, title)
    for key, value in list(attributes.items()):
        if key == "id":
            attributes[key] = Chart.PREFIX + value
        elif key == f"{{{_LINK}}}href" and value.startswith("#"):
            attributes[key] = f"#{Chart.PREFIX}{value[1:]}"
        elif key in ("clip-path", "style"):
            value = value.replace("url(#", f"url(#{Chart.PREFIX}")
            value = re.sub(r"font: (?:[\w ]* )?([\d.]+)px [^;]*", r"font-size: \1px", value)
            attributes[key] = _COLOUR.sub(lambda found: _PAGE_COLOURS[found[0]], value)
        elif key == "d" or key in ("x", "y"):
            attributes[key] = _DECIMALS.sub(r"\1", value)
    if element.tag == f"{{{_SVG}}}text" and "fill:" not in attributes.get("style", ""):
        attributes["style"] = f"fill: currentColor; {attributes.get('style', '')}"
