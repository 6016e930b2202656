"""The sections about runs: what was run, in what the runs differ, how they learned, what their losses weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.remote.url_path import Location, location, resolved
from stages.report.curve_chart import Line, curve_chart
from stages.report.evaluations import Evaluation
from stages.report.parts import Cell, Details, Part, Section, Text, number, row, table
from stages.report.runs import Curve, Run, Term
from stages.report.seed_groups import SeedGroup, differing_keys, with_joined_sections
from stages.report.svg import COLOURS

MAX_LOSS_CHARTS = 8
MAX_LOSS_ROWS = 120
MAX_COLUMNS = 24  # keys that differ; a table of more can't be read
SHORT = 400  # characters of a config's value


def runs_section(
    runs: Sequence[Run], scores: Mapping[Location, Sequence[Evaluation]], caches: Mapping[Location, str]
) -> Section | None:
    """`scores`: the evaluations of each run's folder. `caches`: the names of the caches that are in the report."""
    if not runs:
        return None
    columns = ("run", "state", "net", "px", "GFLOPs a view", "learns from", "epochs", "seed", "best validation, %",
               "evaluated, %", "several evaluations", "clips not decoded", "hours")  # fmt: skip
    rows = []
    for run in runs:
        evaluated = scores.get(run.path, ())
        hours = None if run.seconds is None else run.seconds / 3600
        known = (run.name, run.state, _net(run), _figure(run, "size"), run.gflops, _learns_from(run, caches))
        settings = (
            _figure(run, "schedule.epochs"),
            _figure(run, "seed"),
            number(run.best, ".2f"),
            number(evaluated[0].score if len(evaluated) == 1 else None, ".2f"),
            _named(evaluated) if len(evaluated) > 1 else "",
        )
        rows.append(row(*known, *settings, number(run.failed_clips, "d"), number(hours, ".3g")))
    parts: list[Part] = [table("Every run in a line", columns, rows)]
    if empty := [run.name for run in runs if not len(run.loss.x)]:
        parts.append(Text(f"Nothing is logged yet of: {', '.join(empty[:20])}{' …' * (len(empty) > 20)}."))
    parts += _differences(runs)
    return Section("runs", "What was run", tuple(parts))


def _named(evaluated: Sequence[Evaluation]) -> str:
    """ "3: a, b, c": which one counts is the reader's choice."""
    return _short(f"{len(evaluated)}: {', '.join(evaluation.name for evaluation in evaluated)}")


def _net(run: Run) -> str:
    return " ".join(str(run.config[key]) for key in ("model.arch", "model.backbone") if run.config.get(key))


def _learns_from(run: Run, caches: Mapping[Location, str]) -> str:
    if cache := run.config.get("data.cache"):
        views = run.config.get("data.views")
        return f"labels and cache {caches.get(resolved(location(str(cache))), cache)}" + (
            f", {views} views" if views else ""
        )
    return "labels and a teacher in the loop" if run.config.get("teacher.checkpoint") else "labels alone"


def _figure(run: Run, key: str) -> Cell:
    return _cell(run.config.get(key))


def _cell(value: object) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(float(value), ".10g") if is_number else Cell(_short(value))


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def _differences(runs: Sequence[Run]) -> list[Part]:
    if len(runs) < 2:
        return []
    configs = with_joined_sections([run.config for run in runs])
    keys = differing_keys(configs)
    if not keys:
        return [Text("The configs of these runs are equal, but for their folders.")]
    shown = keys[:MAX_COLUMNS]
    rows = [
        row(run.name, *(_cell(config.get(key)) for key in shown)) for run, config in zip(runs, configs, strict=True)
    ]
    note = "Keys that are equal in all runs are left out. An empty cell is a key without a value."
    if len(keys) > len(shown):
        note += f" {len(keys) - len(shown)} more keys differ: {', '.join(keys[len(shown) :])}."
    return [table("In what their configs differ", ("run", *shown), rows, note)]


def curves_section(groups: Sequence[SeedGroup]) -> Section | None:
    """Validation accuracy over epochs, and training loss over steps. Of many groups, the best ones come first."""
    charts = []
    if len(groups) > len(COLOURS):
        groups = sorted(groups, key=lambda group: -group.best)
    for metric, name in (("top1", "top-1"), ("map", "mAP")):
        lines = [
            Line(group.label, tuple(run.validation for run in group.runs))
            for group in groups
            if group.runs[0].metric == metric
        ]
        charts.append(curve_chart(f"Validation {name} during training", lines, "epoch", f"{name}, %", percent=True))
    lines = [Line(group.label, tuple(run.loss for run in group.runs)) for group in groups]
    charts.append(curve_chart("Training loss", lines, "optimizer step", "loss"))
    if not any(charts):
        return None
    text = Text(
        "Losses of runs with other weights, or other terms, can't be compared with each other: see the next section."
    )
    return Section("curves", "How the runs learned", (*(chart for chart in charts if chart), text))


def losses_section(groups: Sequence[SeedGroup]) -> Section | None:
    """Each loss beside its weight: what it adds to the sum."""
    rows, charts = [], []
    for group in groups:
        run = group.runs[0]
        total = _last(run.loss)
        for name, term in run.terms.items():
            first, last = term.curve.y[0], _last(term.curve)
            weight = _last(term.weights)
            share = None if not total else 100 * weight * last / total
            rows.append(row(group.label, name, _weights_text(term), float(first), last, weight * last,
                            number(share, ".1f")))  # fmt: skip
        if len(run.terms) > 1 and len(charts) < MAX_LOSS_CHARTS:
            lines = [Line(f"{name} × {_weights_text(term)}", (_weighted(term),)) for name, term in run.terms.items()]
            charts.append(
                curve_chart(f"Losses times their weights: {run.name}", lines, "optimizer step", "weight × loss")
            )
    if not rows:
        return None
    columns = ("runs", "loss", "weight", "at the start", "at the end", "weight × end", "% of the sum at the end")
    note = "Of several seeds, the first one is shown."
    if len(rows) > MAX_LOSS_ROWS:
        note += f" The first {MAX_LOSS_ROWS} of {len(rows)} losses are listed."
    parts: list[Part] = [table("What each loss adds to the sum", columns, rows[:MAX_LOSS_ROWS], note)]
    if drawn := tuple(chart for chart in charts if chart):
        parts.append(Details("Charts: losses times their weights", drawn, opened=len(drawn) <= 2))
    return Section("losses", "What the losses weigh", tuple(parts))


def _last(curve: Curve) -> float:
    return float(curve.y[-1]) if len(curve.y) else 0.0


def _weighted(term: Term) -> Curve:
    return Curve(term.curve.x, term.weights.y * term.curve.y)


def _weights_text(term: Term) -> str:
    """A weight, or that of the first logged step and that of the last one: "5 → 0.08"."""
    first, last = float(term.weights.y[0]), _last(term.weights)
    return f"{first:g}" if first == last else f"{first:.3g} → {last:.2g}"
