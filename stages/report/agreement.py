"""Two nets on the same clips: which both know, which one knows alone, which neither knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.report.evaluations import Evaluation


@dataclass(frozen=True)
class Agreement:
    """Numbers of the clips that both nets answered. `teacher`: the net with the most GFLOPs on these clips."""

    teacher: Evaluation
    student: Evaluation
    both: int  # both right
    teacher_only: int
    student_only: int
    neither: int
    same_answer: int  # right or wrong

    @property
    def clips(self) -> int:
        return self.both + self.teacher_only + self.student_only + self.neither


def agreements(evaluations: Sequence[Evaluation]) -> list[Agreement]:
    """Each net with answers, beside the net with the most GFLOPs a view that has answers for the same data set."""
    of_data: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.answers:
            of_data.setdefault(str(evaluation.data), []).append(evaluation)
    found = []
    for group in of_data.values():
        teacher = max(group, key=lambda evaluation: evaluation.gmacs)
        found += [compare(teacher, student) for student in group if student is not teacher]
    return [agreement for agreement in found if agreement.clips]


def compare(teacher: Evaluation, student: Evaluation) -> Agreement:
    """Count over the clips that both have answered."""
    of_teacher = {(answer.shard, answer.key): answer for answer in teacher.answers}
    pairs = [(of_teacher[a.shard, a.key], a) for a in student.answers if (a.shard, a.key) in of_teacher]
    right = [(t.right, s.right) for t, s in pairs]
    return Agreement(
        teacher,
        student,
        both=right.count((True, True)),
        teacher_only=right.count((True, False)),
        student_only=right.count((False, True)),
        neither=right.count((False, False)),
        same_answer=sum(t.answer == s.answer for t, s in pairs),
    )
