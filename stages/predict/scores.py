"""The scores of videos: forwards in batches across videos, averages over views and windows, in the order of the input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.metrics.averaging import Average, averaged, view_scores
from stages.predict.steps import Steps, steps_of
from stages.predict.tasks import Answer, Facts

NOT_FINITE = "the model's scores are not finite: its weights are damaged, or bfloat16 overflows (set amp: off)"


@dataclass(frozen=True)
class Prediction:
    """What is known of a video at the end: an error, or its probabilities."""

    video: int
    error: str | None = None
    facts: Facts | None = None
    decoder: str | None = None
    probabilities: np.ndarray | None = None  # float64 [K], of the whole video
    steps: Steps | None = None  # along its time, if there are windows and somebody asked


@dataclass
class _Sums:
    """What has come of a video so far."""

    facts: Facts | None = None
    decoder: str | None = None
    error: str | None = None
    windows: int = 0  # that are scored
    total: Tensor | None = None  # float64 [K or D], the sum of the windows' scores
    each: np.ndarray | None = None  # float32 [windows, K or D], if steps are wanted; the first `windows` rows are known

    @property
    def done(self) -> bool:
        return self.error is not None or (self.facts is not None and self.windows == self.facts.windows)


@dataclass(frozen=True)
class Scoring:
    """How a model is run, and what is averaged."""

    amp: bool  # bfloat16 autocast
    average: Average
    forward: int  # views in one forward
    hop: float | None  # seconds of a step, if steps in time are wanted


class Scorer:
    """Takes answers of the decoding processes, and gives the predictions in the order of the videos."""

    def __init__(self, model: torch.nn.Module, device: torch.device, scoring: Scoring):
        self.model, self.device, self.scoring = model, device, scoring
        self.sums: dict[int, _Sums] = {}
        self.waiting: list[tuple[int, Tensor]] = []  # video, clips [windows,V,T,3,S,S]
        self.views = 0  # that wait
        self.next = 0  # the video whose prediction comes next
        self.finished = 0  # videos that are scored or have failed, in any order

    def add(self, answer: Answer) -> Iterator[Prediction]:
        """Take an answer; yields the predictions that are complete now."""
        if answer.video < self.next:  # it has failed, and this was under way
            return
        sums = self.sums.setdefault(answer.video, _Sums())
        was_done = sums.done
        sums.facts, sums.decoder = answer.facts or sums.facts, answer.decoder or sums.decoder
        sums.error = answer.error or sums.error
        self.finished += sums.done - was_done
        if answer.clips is not None:
            self.waiting.append((answer.video, answer.clips.to(self.device, non_blocking=True)))
            self.views += answer.clips.shape[0] * answer.clips.shape[1]
        if self.views >= self.scoring.forward:
            self._score()
        yield from self._complete()

    def finish(self) -> Iterator[Prediction]:
        """Score what still waits."""
        self._score()
        yield from self._complete()

    def progress(self) -> float:
        """How many videos are done, and which part of the next one."""
        windows = self.windows_of_next()
        return self.finished + (windows[0] / windows[1] if windows and windows[0] < windows[1] else 0)

    def windows_of_next(self) -> tuple[int, int] | None:
        """Of the first unfinished video: the windows that are scored, and all of them; None if it has one or isn't seen yet."""
        sums = self.sums.get(self.next)
        if sums is None or sums.facts is None or sums.facts.windows == 1:
            return None
        return sums.windows, sums.facts.windows

    @torch.inference_mode()
    def _score(self) -> None:
        if not self.waiting:
            return
        clips = torch.cat([part.flatten(0, 1) for _, part in self.waiting])
        how = self.scoring
        scores = view_scores(self.model, clips, amp=how.amp, average=how.average, forward=how.forward).cpu()
        position = 0
        for video, part in self.waiting:
            windows, views = part.shape[:2]
            means = scores[position : position + windows * views].unflatten(0, (windows, views)).mean(1)
            position += windows * views
            if (sums := self.sums.get(video)) is None:  # it has failed since
                continue
            was_done = sums.done
            if self.scoring.hop is not None:
                if sums.each is None:  # the system gives its memory as it is filled
                    sums.each = np.empty((sums.facts.windows, means.shape[1]), np.float32)
                sums.each[sums.windows : sums.windows + windows] = means.numpy()
            sums.windows += windows
            self.finished += sums.done - was_done
            sums.total = means.sum(0) if sums.total is None else sums.total + means.sum(0)
        self.waiting, self.views = [], 0

    def _complete(self) -> Iterator[Prediction]:
        while (sums := self.sums.get(self.next)) is not None and sums.done:
            del self.sums[self.next]
            yield self._prediction(self.next, sums)
            self.next += 1

    def _prediction(self, video: int, sums: _Sums) -> Prediction:
        if sums.error is not None:
            return Prediction(video, sums.error)
        probabilities = self._averaged((sums.total / sums.windows)[None])[0]
        steps = None
        if self.scoring.hop is not None:
            steps = steps_of(sums.each, sums.facts.starts, sums.facts.ends, self.scoring.hop, self._averaged)
        if not np.isfinite(probabilities).all():
            return Prediction(video, NOT_FINITE)
        return Prediction(video, None, sums.facts, sums.decoder, probabilities, steps)

    @torch.inference_mode()
    def _averaged(self, means: Tensor) -> np.ndarray:
        return averaged(self.model, means.to(self.device), self.scoring.average).cpu().numpy()
