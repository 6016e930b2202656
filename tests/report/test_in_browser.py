"""The report of a real sweep and its teacher: what it tells, and what a browser makes of it.

The tests that need Chromium are skipped where there is none, but for CI, which installs it.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.bench.arms import LABELS, Arm
from stages.bench.config import StudyConfig
from stages.bench.fidelity import _write
from stages.bench.outcomes import Outcome
from stages.config.file import load_config
from stages.evaluate.answers_file import read_answers
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.metrics.spread import SeedScores
from stages.report.evaluations import confusion_counts, read_evaluation, with_answers
from stages.report.report import write_report
from stages.runtime.log import read_metrics
from stages.sweep.config import load_sweep
from stages.sweep.sweep import run_sweep
from tests.runs import QUICK

HOSTILE = "<img src=x onerror=document.title='bad'>$x^2$</script>"


@pytest.fixture(scope="module")
def report(data, teacher, cached, tmp_path_factory) -> SimpleNamespace:
    """Two students over one cache, scored beside their teacher; one class has a hostile name; some files are damaged."""
    root = tmp_path_factory.mktemp("report")
    base = [f"output={root / 'sweep'}", f"data.train={data.train}", f"data.val={data.val}", f"data.cache={cached}",
            "size=16", *QUICK, "losses.feature_mse=1.0", "schedule.epochs=1"]  # fmt: skip
    run_sweep(load_sweep(None, base, ("seed=0,1",)), test=data.val)
    scored = root / "teacher" / "test.json"
    fixed = [f"checkpoint={teacher}", f"data={data.val}", "loader.workers=0", f"output={scored}"]
    evaluate(load_config(EvaluateConfig, None, fixed))
    renamed = json.loads(scored.read_text())["confused"][0]["truth"]
    for file in (scored, *scored.parent.glob("*.csv")):
        file.write_text(re.sub(rf"(?<![\w-]){re.escape(renamed)}(?![\w-])", HOSTILE, file.read_text()))
    (root / "cut").mkdir()
    (root / "cut" / "test.json").write_text(scored.read_text()[:200])
    study(root / "study")
    page = root / "report.html"
    told = write_report([root, teacher.parent, cached, data.val], page)
    return SimpleNamespace(root=root, page=page, told=told, text=page.read_text(), scored=scored, teacher=teacher)


def study(folder):
    """As `bench fidelity` writes it."""
    clips = {"train": 1, "val": 1, "test": 1}
    config = StudyConfig(output=folder, clips=clips, video_size=16, video_frames=4, epochs=2, teacher_epochs=2)
    curves = (((10, 20.0), (20, 40.0)), ((10, 22.0), (20, 44.0)))
    cached = Arm("replay, V = 2", {"feature_mse": 2.0}, "cached", views=2)
    arms = {
        arm.name: Outcome(arm, SeedScores((40.0, 44.0)), curves, size)
        for arm, size in ((LABELS, None), (cached, 900.0))
    }
    _write(config, arms, cached, 2)


def table(text, caption):
    """The cells of the table below this heading, its columns first."""
    part = text.partition(f"<h3>{html.escape(caption)}</h3>")[2].partition("</table>")[0]
    assert part, caption
    rows = re.findall("<tr>(.*?)</tr>", part, re.S)
    return [
        [html.unescape(re.sub("<.*?>", "", c)) for c in re.findall("<t[hd].*?>(.*?)</t[hd]>", r, re.S)] for r in rows
    ]


# ---- what it tells ----


def test_what_was_found_and_what_was_not(report):
    found = {"runs": 3, "caches": 1, "data_sets": 1, "evaluations": 3, "sweeps": 1, "studies": 1}
    assert {kind: report.told[kind] for kind in found} == found
    ((what, why),) = report.told["problems"]
    assert what.endswith("cut/test.json") and "can't be read" in why
    assert table(report.text, "Files and reasons")[1] == [what, why]


def test_runs_and_in_what_they_differ(report):
    columns, *rows = table(report.text, "In what their configs differ")
    assert {"run", "size", "seed", "data.cache", "losses.feature_mse", "schedule.epochs"} <= {*columns}
    assert "batch_size" not in columns and "output" not in columns and "optim.lr" not in columns
    of = {row[0].rpartition("/")[2]: dict(zip(columns, row, strict=True)) for row in rows}
    assert (of["seed=1"]["size"], of["seed=1"]["seed"], of["teacher"]["size"]) == ("16", "1", "32")
    columns, *rows = table(report.text, "Every run in a line")
    run = next(dict(zip(columns, row, strict=True)) for row in rows if row[0].endswith("seed=1"))
    scored = json.loads((report.root / "sweep" / "seed=1" / "test.json").read_text())
    assert (run["state"], run["evaluated, %"]) == ("finished", f"{scored['top1']:.2f}")
    assert run["learns from"] == "labels and cache teacher.zarr, 2 views"


def test_losses_stand_beside_their_weights(report):
    last = [row for row in read_metrics(report.root / "sweep" / "seed=0") if row["kind"] == "train"][-1]
    columns, *rows = table(report.text, "What each loss adds to the sum")
    of = {row[1]: dict(zip(columns, row, strict=True)) for row in rows if "(2 seeds)" in row[0]}
    assert {name: float(line["weight"]) for name, line in of.items()} == {"cross_entropy": 1.0, "feature_mse": 1.0}
    assert float(of["feature_mse"]["weight × end"]) == pytest.approx(last["terms"]["feature_mse"]["value"], rel=1e-3)
    assert sum(float(line["% of the sum at the end"]) for line in of.values()) == pytest.approx(100, abs=0.2)


def test_teacher_beside_student_is_counted_clip_by_clip(report):
    student = report.root / "sweep" / "seed=0" / "test.answers.csv"
    files = (report.scored.with_name("test.answers.csv"), student)
    right = [{(a.shard, a.key): a.right for a in read_answers(file)} for file in files]
    assert right[0].keys() == right[1].keys() and len(right[0]) == 40
    counts = [sum((right[0][k], right[1][k]) == pair for k in right[0]) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]
    _, *rows = table(report.text, "Which clips both nets know")
    line = next(row for row in rows if row[1].endswith("seed=0"))
    assert line[0].endswith("teacher") and line[2] == "40"
    assert [float(share) for share in line[3:7]] == pytest.approx([100 * n / 40 for n in counts], abs=0.06)


def test_answers_are_those_of_the_metrics(report):
    (evaluation,) = with_answers([read_evaluation(report.scored, "teacher")])
    counts, names = confusion_counts(evaluation)
    assert counts.sum() == 40 and 100 * np.trace(counts) / 40 == pytest.approx(evaluation.metrics["top1"])
    recall = 100 * np.diag(counts) / counts.sum(1)
    assert recall == pytest.approx([evaluation.classes[name]["recall"] for name in names])
    pair = evaluation.confused[0]
    assert counts[names.index(pair[0]), names.index(pair[1])] == pair[2] and pair[0] == HOSTILE


def test_what_the_teacher_cost(report):
    columns, row = table(report.text, "The teacher ran once")
    cost = dict(zip(columns, row, strict=True))
    assert (cost["students that finished"], cost["teacher, clip·views"]) == ("2", "400")
    assert cost["in the loop, clip·views"] == "384" and float(cost["ms a clip·view"]) > 0


def test_confused_clips_have_frames(report):
    pictures = re.findall(r'<li><img src="data:image/jpeg;base64,([\w+/=]+)" alt=""><span>(.*?)</span>', report.text)
    assert len(pictures) > 5 and all(len(picture) < 8000 for picture, _ in pictures)
    assert any(html.escape(HOSTILE, quote=False)[:8] in text for _, text in pictures)


def test_nothing_of_a_name_is_markup(report):
    assert (
        "<img src=x" not in report.text and "$x^2$" in report.text
    )  # as text; matplotlib has not set it as mathematics
    assert report.text.count("</script>") == 1


# ---- in a browser ----


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """`open(page)`: its DOM, what the console said, and the addresses that the page asked for."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has no Chromium, in which the report is tested")
        pytest.skip("no Chromium here")
    folder = tmp_path_factory.mktemp("chromium")

    def open_page(page):
        log = folder / f"{page.stem}.net.json"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--window-size=360,800"]  # fmt: skip
        done = subprocess.run([program, *flags, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom",
                               page.as_uri()], capture_output=True, text=True, timeout=120)  # fmt: skip
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        # Chromium asks for updates of its own; what a page asks for has an initiator.
        asked = re.findall(r'"initiator":"(?!not an origin)[^"]*".*?"url":"([^"]*)"', log.read_text())
        return SimpleNamespace(dom=done.stdout, console=console, asked=asked)

    return open_page


@pytest.fixture(scope="module")
def driven(report, chromium):
    """What driver.js saw of the page, as it is, in a frame of a phone's width."""
    driver = Path(__file__).with_name("driver.js").read_text()
    outer = report.root / "outer.html"
    frame = f'<iframe style="width: 360px; height: 800px; border: 0" srcdoc="{html.escape(report.text)}"></iframe>'
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}<script>{driver}</script></body>')
    opened = chromium(outer)
    assert opened.asked == ["http://asked.invalid/by-the-driver.png"]  # so requests are seen
    return json.loads(html.unescape(re.search('data-shown="(.*?)"', opened.dom)[1]))


def test_the_page_runs_its_script_alone_and_asks_for_nothing(report, chromium):
    opened = chromium(report.page)
    assert opened.console == [] and opened.asked == []
    assert re.search("<title>(.*?)</title>", opened.dom)[1].startswith("Report of ")


def test_a_class_name_is_inert(driven):
    assert driven["title"].startswith("Report of ") and driven["images"] == 0
    assert any(HOSTILE in name for name in driven["hovered"])


def test_every_chart_is_drawn_and_its_ids_are_its_own(driven):
    # two fronts, two curves, the losses of the two students, three confusion matrices, two of the study
    assert driven["charts"] == 10 and driven["empty"] == 0
    assert driven["twice"] == 0 and driven["lost"] == 0 and driven["links"]


def test_points_and_lines_have_names(driven):
    assert any(re.match(r"student: .* GFLOPs", name) for name in driven["hovered"])
    assert any(re.match(r".* \(2 seeds\): .* at the end", name) for name in driven["hovered"])


def test_tables_are_sorted_by_a_click_on_a_column(driven):
    up, down = ([float(cell) for cell in driven[way]["cells"] if cell] for way in ("up", "down"))
    assert up == sorted(up) and down == sorted(up, reverse=True) and len({*up}) > 1
    assert (driven["up"]["sort"], driven["down"]["sort"], driven["names"]["sort"]) == (
        "ascending",
        "descending",
        "ascending",
    )
    assert all(driven[way]["focused"] and driven[way]["sorted"] == 1 for way in ("up", "down", "names"))
    names = [name for name in driven["names"]["cells"] if name != HOSTILE]
    assert names == sorted(names)


def test_a_phone_scrolls_tables_and_not_the_page(driven):
    assert driven["width"] == 360 and driven["page"] <= 360
