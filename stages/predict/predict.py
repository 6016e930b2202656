"""Recognise what happens in videos: labels of whole videos, or segments along their time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cache.errors import ReskdError
from stages.config.json_result import STDOUT, check_writable
from stages.models.checkpoints import load_model
from stages.models.video_model import to_device
from stages.predict.annotate import annotate_video
from stages.predict.config import PredictConfig
from stages.predict.decoding import Decoding
from stages.predict.inputs import find_videos
from stages.predict.lines import line_of, open_output
from stages.predict.plot import plot_name, plot_timeline
from stages.predict.schedule import Schedule
from stages.predict.scores import Prediction, Scorer, Scoring
from stages.predict.steps import Steps, segments_of
from stages.predict.tasks import Views
from stages.predict.videos import FileVideo, Video
from stages.remote.outputs import written_at
from stages.remote.url_path import Location
from stages.runtime.distributed import Ranks, cores, has_bfloat16, join_ranks
from stages.runtime.plots import warn_if_it_fails
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console
from stages.stream.loading import decoding_workers
from stages.stream.protocol import protocol_policy
from stages.stream.worker_pool import make_batches


def predict(config: PredictConfig) -> int:
    """Predict the videos of a config, and write a line for each as soon as it is known. Returns their number.

    Raises ReskdError before the work if an input or the checkpoint can't be read, or an output can't be written; and after
    it, if some videos failed: their lines have an `error`.
    """
    model, card = load_model(config.checkpoint)
    policy = protocol_policy(config.policy or card.eval_policy, config.protocol)
    videos = find_videos(config.inputs)
    _check_outputs(config, videos)
    views = Views(policy, config.size or card.size, card.render_via, config.window, config.step,
                  at_once=max(1, config.batch_size // policy.views))  # fmt: skip
    started = time.perf_counter()
    with join_ranks() as ranks:
        if ranks.world > 1:
            raise ReskdError(
                "predict runs in one process: start it without torchrun, and give each process its own videos"
            )
        amp = config.amp == "auto" and has_bfloat16(ranks.device)
        in_steps = config.window is not None and (config.timeline or config.plot or config.annotate)
        scoring = Scoring(amp, config.average, config.batch_size, config.step if in_steps else None)
        scorer = Scorer(to_device(model, ranks.device), ranks.device, scoring)
        failed, last = _write_all(_predictions(videos, views, scorer, config, ranks), videos, card.classes, config)
    rate = len(videos) / (time.perf_counter() - started)
    console.print(f"{len(videos)} videos, {failed} failed, {rate:.1f} videos/s", highlight=False)
    if failed:
        where = "their lines" if config.output == STDOUT else f"their lines in {config.output}"
        raise ReskdError(
            f"{failed} of {len(videos)} videos could not be read: {where} say why. The others are predicted"
        )
    if config.annotate is not None:
        _annotate(config.annotate, videos[0], last, card.classes)
    return len(videos)


def _write_all(
    predictions: Iterable[Prediction], videos: Sequence[Video], classes: Sequence[str], config: PredictConfig
) -> tuple[int, Prediction]:
    """Write the line of each prediction, and its picture. Returns how many videos failed, and the last prediction."""
    failed = 0
    with ExitStack() as stack:
        output = stack.enter_context(written_at(config.output))
        table = None if config.csv is None else stack.enter_context(written_at(config.csv))
        plots = None if config.plot is None else stack.enter_context(written_at(config.plot / "plots")).parent
        write = stack.enter_context(open_output(output, table))
        for found in predictions:
            video, segments = videos[found.video], None
            if found.steps is not None:
                segments = segments_of(found.steps, config.threshold, config.least)
            write(line_of(video, found, classes, segments if config.timeline else None))
            if found.error is not None:
                failed += 1
                console.print(f"[yellow]failed[/] {video.name}: {found.error}", highlight=False, soft_wrap=True)
            elif plots is not None:
                picture = plot_name(found.video, video.name)
                with warn_if_it_fails(f"{config.plot / picture}"):
                    plot_timeline(plots / picture, video.name, found.steps, segments, classes)
    return failed, found


def _predictions(
    videos: Sequence[Video], views: Views, scorer: Scorer, config: PredictConfig, ranks: Ranks
) -> Iterator[Prediction]:
    """The predictions in the order of the videos, with a progress bar."""
    workers = min(decoding_workers(config.loader), len(videos))
    decoding = Decoding(videos, views, threads=max(1, cores() // max(1, workers)))
    schedule = Schedule(len(videos), workers, views.at_once)
    answers = make_batches(decoding.begin, schedule.tasks(), workers, config.loader, data=decoding,
                           pin=ranks.device.type == "cuda")  # fmt: skip
    started = time.perf_counter()
    lines_are_seen = config.output == STDOUT and sys.stdout.isatty()
    with progress_bar("videos", disable=lines_are_seen) as bar:
        task = bar.add_task("predict", total=len(videos), rate=0.0, note="")
        for answer in answers:
            if isinstance(answer, ReskdError):  # of the pool itself
                raise answer
            if answer is None:
                continue
            schedule.answered(answer)
            yield from scorer.add(answer)
            done = scorer.progress()
            bar.update(task, completed=done, rate=done / (time.perf_counter() - started), note=_note(scorer))
        yield from scorer.finish()
        bar.update(task, completed=len(videos), rate=len(videos) / (time.perf_counter() - started), note="")


def _note(scorer: Scorer) -> str:
    """How far the first unfinished video is, if it has several windows."""
    windows = scorer.windows_of_next()
    return "" if windows is None else f"video {scorer.next + 1}: {windows[0]} of {windows[1]} windows"


def _annotate(path: Location, video: Video, found: Prediction, classes: Sequence[str]) -> None:
    """Write the annotated copy of a video, and say so."""
    steps = found.steps or Steps(np.array([0.0, found.facts.seconds or 1.0]), found.probabilities[None])
    started = time.perf_counter()
    with progress_bar("s of video") as bar:
        task = bar.add_task("annotate", total=float(steps.borders[-1]), rate=0.0, note="")
        with written_at(path) as file:
            annotate_video(file, video, steps, classes, lambda second: bar.update(
                task, completed=second, rate=second / (time.perf_counter() - started)))  # fmt: skip
    console.print(f"{path}: written without sound", highlight=False, soft_wrap=True)


def _check_outputs(config: PredictConfig, videos: Sequence[Video]) -> None:
    """Raises ReskdError if an output can't be written, is an input, or doesn't go with the number of videos."""
    if config.annotate is not None and len(videos) != 1:
        raise ReskdError(f"annotate takes one video, and {len(videos)} are given: give one, or leave annotate out")
    outputs = [path for path in (config.output, config.csv, config.annotate) if path not in (None, STDOUT)]
    if len({*map(_place, outputs)}) < len(outputs):
        raise ReskdError("two outputs have the same name: give each of output, csv and annotate its own")
    files = [config.checkpoint, *(video.path for video in videos if isinstance(video, FileVideo))]
    inputs = {*map(_place, files)}
    for path in outputs:
        if _place(path) in inputs:
            raise ReskdError(f"{path} is an input, which would be overwritten: give another name")
        check_writable(path, in_place=path != config.annotate)
    if isinstance(config.plot, Path):
        try:
            config.plot.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReskdError(f"{config.plot} can't be made ({error.strerror}): give another folder for plot") from error
    elif config.plot is not None:
        check_writable(config.plot / "plots")


def _place(path: Location) -> str:
    """Where a file lies, links followed."""
    return os.path.realpath(path) if isinstance(path, Path) else str(path)
