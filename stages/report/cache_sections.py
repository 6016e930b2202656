"""The sections about caches, the teacher's cost, studies, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stages.report.caches import CacheFigures, DataFigures, LeftOut
from stages.report.curve_chart import curve_chart
from stages.report.front_chart import bytes_chart
from stages.report.parts import Part, Section, Text, number, row, table
from stages.report.runs import Run
from stages.report.studies import Study, Sweep
from stages.sweep.cost import teacher_cost

MAX_LEFT_OUT = 100  # clips that are named


def caches_section(caches: Sequence[CacheFigures]) -> Section | None:
    """What the caches hold, and what their encodings lose."""
    if not caches:
        return None
    columns = ("cache", "teacher", "px", "clips", "views finished", "views planned", "clip·views stored", "MB", "maps",
               "bytes of a clip·view's maps")  # fmt: skip
    rows = [row(c.name, c.teacher, *(number(n, "d") for n in (c.size, c.clips, c.views, c.planned, c.clip_views)),
                number(c.bytes / 1e6, ".3g"), c.maps, number(c.map_bytes, ".0f")) for c in caches]  # fmt: skip
    parts: list[Part] = [table("What each cache holds", columns, rows)]
    measured = [(cache.name, cache.error) for cache in caches if cache.error]
    if measured:
        columns = ("cache", "energy that the channels keep, %", "energy that the grid keeps, %", "rounding error, %",
                   "held-out maps")  # fmt: skip
        rows = [row(name, *(number(100 * error.get(key, float("nan")), ".4g") for key in ("channels", "grid", "rounding")),
                    number(error.get("held_out"), ".0f")) for name, error in measured]  # fmt: skip
        note = ("Measured when the cache was made. The rounding error is a share of the loss of a student that predicts the "
                "mean map. `cache-teacher --verify N` compares stored with recomputed targets, and stops at a difference; it "
                "stores no figures.")  # fmt: skip
        parts.append(table("What the encodings lose", columns, rows, note))
    return Section("caches", "What the caches hold", tuple(parts))


def cost_section(caches: Sequence[CacheFigures], runs: Sequence[Run], sweeps: Sequence[Sweep]) -> Section | None:
    """What the teacher cost for each cache, and what it would have cost in the training of the runs that used it."""
    rows = [_cost_row(cache, runs) for cache in caches]
    parts: list[Part] = []
    if rows:
        columns = ("cache", "students that finished", "teacher, clip·views", "in the loop, clip·views", "teacher, seconds",
                   "ms a clip·view", "in the loop, seconds", "stage one by the clock, seconds")  # fmt: skip
        note = (
            "In the loop: what the teacher would have computed if it had run in every training step of these students."
        )
        parts.append(table("The teacher ran once", columns, rows, note))
    for sweep in sweeps:
        cost = sweep.cost
        lines = [("teacher, clip·views", cost.get("teacher_clip_views"), cost.get("in_loop_clip_views")),
                 ("teacher, hours", cost.get("teacher_hours"), cost.get("in_loop_hours")),
                 ("decoding, epochs", cost.get("decode_passes"), cost.get("decode_passes_alone")),
                 ("training, hours", cost["seconds"] / 3600, None)]  # fmt: skip
        columns = ("cost", "this sweep", "each student alone, with the teacher in the loop")
        parts.append(table(f"Sweep {sweep.name}", columns, [row(*line) for line in lines]))
    return Section("cost", "What the teacher cost", tuple(parts)) if parts else None


def _cost_row(cache: CacheFigures, runs: Iterable[Run]) -> tuple:
    students = [run for run in runs if run.finished and run.reads(cache.path)]
    cost, time = teacher_cost({cache.path: sum(run.clips_seen for run in students)}), cache.time
    each = 1e3 * time.forward_seconds / time.clip_views if time and time.clip_views else None
    in_loop = cost["in_loop_hours"]
    return row(cache.name, number(len(students), "d"), number(cost["teacher_clip_views"], ",d"),
               number(cost["in_loop_clip_views"], ",d"), number(time.forward_seconds if time else None, ".1f"),
               number(each, ".2f"), number(None if in_loop is None else in_loop * 3600, ".1f"),
               number(time.seconds if time else None, ".1f"))  # fmt: skip


def studies_section(studies: Sequence[Study]) -> Section | None:
    """Accuracy over bytes, validation curves, and all arms."""
    parts: list[Part] = []
    for study in studies:
        same = [arm for arm in study.arms if arm.schedule == 1]
        cached = [(arm.name, arm.bytes, arm.top1) for arm in same if arm.bytes]
        others = [(arm.name, arm.top1) for arm in same if not arm.bytes]
        if cached:
            parts.append(
                bytes_chart(f"Study {study.name}: accuracy over the bytes of a clip·view's maps", cached, others)
            )
        lines = [arm.validation for arm in study.arms]
        chart = curve_chart(
            f"Study {study.name}: validation top-1 during training", lines, "step", "top-1, %", percent=True
        )
        parts += [chart] if chart else []
        columns = (
            "arm",
            "seeds",
            "top-1, %",
            "± over seeds",
            "bytes a clip·view",
            "times the epochs",
            "share of steps to equal labels alone",
        )
        rows = [row(arm.name, number(len(arm.top1.values), "d"), number(arm.top1.mean, ".2f"),
                    number(arm.top1.std or None, ".2f"), number(arm.bytes, ".0f"), number(arm.schedule, "g"),
                    number(arm.steps_to_labels, ".2f")) for arm in study.arms]  # fmt: skip
        note = (f"{study.views} views. The encoding with the fewest bytes that is no worse than the teacher in the loop: "
                f"{study.best}. The last column: the share of the steps of labels alone after which an arm is as "
                "good as labels alone at their end.")  # fmt: skip
        parts.append(table(f"Study {study.name}: its arms", columns, rows, note))
    return Section("studies", "What the studies found", tuple(parts)) if parts else None


def left_out_section(data_sets: Sequence[DataFigures], caches: Sequence[CacheFigures]) -> Section | None:
    """The data sets, and the clips that they and the caches leave out."""
    if not data_sets and not caches:
        return None
    parts: list[Part] = []
    if data_sets:
        rows = [
            row(d.name, *(number(n, "d") for n in (d.clips, d.classes, d.shards, len(d.left_out)))) for d in data_sets
        ]
        parts.append(table("The data sets", ("data set", "clips", "classes", "shards", "clips left out"), rows))
    for name, left_out in ((found.name, found.left_out) for found in (*data_sets, *caches)):
        if left_out:
            parts.append(_left_out_table(name, left_out))
    if not any(found.left_out for found in (*data_sets, *caches)):
        parts.append(Text("No clip is in quarantine."))
    return Section("quarantine", "Which clips are left out", tuple(parts))


def _left_out_table(name: str, left_out: LeftOut) -> Part:
    more = f" The first {MAX_LEFT_OUT} are named." if len(left_out) > MAX_LEFT_OUT else ""
    note = f"{len(left_out)} clips are in quarantine: no net sees them.{more}"
    return table(f"Left out of {name}", ("clip", "reason"), [row(*line) for line in left_out[:MAX_LEFT_OUT]], note)
