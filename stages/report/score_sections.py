"""The sections about accuracy: over cost, in a table, by class, and teacher beside student."""

from __future__ import annotations

from collections.abc import Sequence

from stages.report.agreement import Agreement, agreements
from stages.report.clip_frames import ClipFrames
from stages.report.confusion_chart import confusion_chart
from stages.report.evaluations import MAX_CLASSES, METRICS, Evaluation, class_names, confusion_counts
from stages.report.front_chart import front_chart
from stages.report.parts import Details, Part, Section, Text, number, row, table
from stages.report.seed_groups import SeedGroup
from stages.report.seed_points import evaluated_points, validated_points
from stages.report.studies import Sweep
from stages.sweep.pareto_front import pareto_front

MAX_DETAILED = 6  # evaluations whose classes are listed; a table of each of 200 would be a page of its own
MAX_FRAMES, MAX_CELLS = 60, 8  # pictures on the page; confused pairs of an evaluation with one
MAX_TWO_BY_TWO = 4
NAMES = {"top1": "top-1", "top5": "top-5", "mean_class": "mean of classes", "map": "mAP"}


def fronts_section(
    groups: Sequence[SeedGroup], evaluations: Sequence[Evaluation], sweeps: Sequence[Sweep]
) -> Section | None:
    """Accuracy over GFLOPs: of each sweep, of all nets that were evaluated on the same clips, else of the validations."""
    parts: list[Part] = []
    for sweep in sweeps:
        if sweep.points:
            parts.append(
                front_chart(
                    f"Sweep {sweep.name}: accuracy over GFLOPs", sweep.points, "GFLOPs a view", f"{sweep.metric}, %"
                )
            )
            parts.append(_points_table(sweep))
        if sweep.failed:
            rows = [row(*item) for item in sweep.failed.items()]
            parts.append(table(f"Sweep {sweep.name}: students that failed", ("student", "reason"), rows))
    for (data, protocol, _), points in evaluated_points(groups, evaluations).items():
        if len(points) > 1:
            parts.append(
                front_chart(
                    f"Accuracy on {data}, protocol {protocol}, over GFLOPs", points, "GFLOPs a video", "accuracy, %"
                )
            )
    if not parts and len(points := validated_points(groups)) > 1:
        parts.append(
            front_chart("Best validation of each run over GFLOPs", points, "GFLOPs a view", "best validation, %")
        )
    return Section("front", "Accuracy over cost", tuple(parts)) if parts else None


def _points_table(sweep: Sweep) -> Part:
    front = {point.name for point in pareto_front(sweep.points)}
    rows = [row(p.name, number(p.gflops), number(p.scores.mean, ".2f"), number(p.scores.std or None, ".2f"),
                "yes" if p.name in front else "") for p in sorted(sweep.points, key=lambda p: p.gflops)]  # fmt: skip
    columns = ("student", "GFLOPs a view", f"{sweep.metric}, %", "± over seeds", "on the front")
    return table(f"Sweep {sweep.name}: its points", columns, rows, small=True)


def evaluations_section(evaluations: Sequence[Evaluation]) -> Section | None:
    """All metrics, one line for each evaluation, and teacher beside student."""
    if not evaluations:
        return None
    columns = ("evaluation", "data", "protocol", "px", "GFLOPs a video", *(f"{NAMES[m]}, %" for m in METRICS), "clips",
               "not decoded", "unlabelled")  # fmt: skip
    rows = [row(e.name, str(e.data), e.protocol, number(e.size, "d"), e.gflops, *(number(e.metrics[m], ".2f") for m in METRICS),
                *(number(n, "d") for n in (e.clips, e.failed, e.unlabelled))) for e in evaluations]  # fmt: skip
    parts: list[Part] = [table("Accuracy of each checkpoint", columns, rows)]
    pairs = agreements(evaluations)
    if pairs:
        parts += [_agreement_table(pairs), *(map(_two_by_two, pairs) if len(pairs) <= MAX_TWO_BY_TWO else ())]
    elif len(evaluations) > 1:
        parts.append(Text("Which clips two nets answer alike can't be said: for this, two evaluations of one data set need "
                          "their file NAME.answers.csv, which evaluate --output writes."))  # fmt: skip
    return Section("accuracy", "Accuracy, teacher beside student", tuple(parts))


def _agreement_table(pairs: Sequence[Agreement]) -> Part:
    columns = ("teacher", "student", "clips of both", "both right, %", "teacher alone, %", "student alone, %", "neither, %",
               "same answer, %")  # fmt: skip
    rows = [row(p.teacher.name, p.student.name, number(p.clips, "d"),
                *(number(100 * n / p.clips, ".1f") for n in (p.both, p.teacher_only, p.student_only, p.neither, p.same_answer)))
            for p in pairs]  # fmt: skip
    note = "The teacher is here the net with the most GFLOPs that has answers for the same clips."
    return table("Which clips both nets know", columns, rows, note)


def _two_by_two(pair: Agreement) -> Part:
    rows = [row("teacher right", number(pair.both, "d"), number(pair.teacher_only, "d")),
            row("teacher wrong", number(pair.student_only, "d"), number(pair.neither, "d"))]  # fmt: skip
    caption = f"Clips: {pair.teacher.name} beside {pair.student.name}"
    return table(caption, (" ", "student right", "student wrong"), rows, small=True)


def classes_section(evaluations: Sequence[Evaluation]) -> Section | None:
    """For each evaluation the table of its classes, the confusion matrix, and what is confused most, with frames of clips."""
    usable = [e for e in evaluations if e.classes or e.confused or e.answers]
    if not usable:
        return None
    shown, frames = sorted(usable, key=lambda e: -e.score)[:MAX_DETAILED], ClipFrames(MAX_FRAMES)
    parts: list[Part] = [
        Details(f"{e.name}: {NAMES[e.headline]} {e.score:.2f} %", tuple(_class_parts(e, frames)), opened=i == 0)
        for i, e in enumerate(shown)
    ]
    if len(usable) > len(shown):
        parts.insert(0, Text(f"The {len(shown)} best of {len(usable)} evaluations are shown."))
    return Section("classes", "Which classes are known, which are confused", tuple(parts))


def _class_parts(evaluation: Evaluation, frames: ClipFrames) -> list[Part]:
    parts: list[Part] = []
    if found := confusion_counts(evaluation):
        parts.append(confusion_chart(f"Confusion matrix of {evaluation.name}", *found))
    elif evaluation.answers and (count := len(class_names(evaluation))) > MAX_CLASSES:
        parts.append(Text(f"No confusion matrix: {count:,} classes, and at most {MAX_CLASSES:,} are drawn."))
    if evaluation.confused:
        rows = [row(t, p, number(clips, "d"), number(percent, ".0f")) for t, p, clips, percent in evaluation.confused]
        columns = ("truth", "taken for", "clips", "% of the class's clips")
        parts.append(table("Most confused pairs", columns, rows, small=True))
    if pictures := _confused_pictures(evaluation, frames):
        parts.append(pictures)
    if evaluation.classes:
        columns = ("clips", "recall", "precision", "ap")
        rows = [row(name, *(number(values[c], "g" if c == "clips" else ".1f") for c in columns))
                for name, values in evaluation.classes.items()]  # fmt: skip
        parts.append(table("Each class", ("class", "clips", "recall, %", "precision, %", "AP, %"), rows))
    return parts


def _confused_pictures(evaluation: Evaluation, frames: ClipFrames) -> Part | None:
    """The middle frame of one clip behind each of the most confused pairs: of the clip whose wrong answer is surest."""
    clips = []
    for truth, taken_for, count, _ in evaluation.confused[:MAX_CELLS]:
        behind = [a for a in evaluation.answers if (a.truth, a.answer) == (truth, taken_for)]
        if not behind:
            continue
        clip = max(behind, key=lambda answer: answer.probability)
        text = f"{truth}, taken for {taken_for}: {count} clips. This one: {clip.shard}/{clip.key}, sure to {clip.probability:.0%}"
        clips.append((clip, text))
    caption = "A clip behind each of the most confused pairs: the surest of its wrong answers"
    return frames.pictures(caption, evaluation.data, clips) if clips and frames.budget > 0 else None
