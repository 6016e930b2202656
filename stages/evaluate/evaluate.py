"""Accuracy of a checkpoint on a data set, by a protocol of several views. A student is evaluated without its teacher."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from cache.differences import first_difference
from cache.errors import ReskdError
from cache.store import write_atomically
from stages.config.json_result import check_writable
from stages.evaluate.answers_file import write_answers
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.confusion_plot import plot_confusion
from stages.metrics.accuracy import ScoredVideos, confused_pairs, confusion, measure, per_class
from stages.metrics.scoring import score_videos
from stages.models.checkpoints import load_model
from stages.models.video_model import model_stats, to_device
from stages.remote.outputs import written_at
from stages.remote.url_path import Location, UrlPath
from stages.runtime.csv_text import csv_text
from stages.runtime.distributed import Ranks, has_bfloat16, join_ranks
from stages.runtime.plots import warn_if_it_fails
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.labels import check_labels
from stages.stream.batch import Batch
from stages.stream.clips import ClipDataset
from stages.stream.frame_source import check_fresh_views, frame_options, open_frames
from stages.stream.loading import batches_in_order, raise_errors
from stages.stream.protocol import protocol_policy

MAX_CONFUSED = 20  # pairs of classes in the JSON


def evaluate(config: EvaluateConfig) -> dict:
    """Score a checkpoint. Returns, and writes to `output`, the metrics of `stages.metrics.accuracy.measure` and "protocol",
    "views", "average", "size", "gmacs" (of a view), "gflops" (of a video: gmacs × views), "confused" (the most confused
    pairs of classes; None if a clip has several labels), "checkpoint", "data"; of a checkpoint in a store also
    "checkpoint_etag", which changes with its content.

    NAME.answers.csv, NAME.classes.csv and, if every clip has one label, NAME.confusion.png are written beside NAME.json,
    after it: if they fail, a warning says so.
    Raises ReskdError if the data set has other classes than the checkpoint, or no labelled clip.
    """
    if config.output is not None:
        check_writable(config.output)
    state = _state_in_store(config.checkpoint)  # before it is read: metrics never pass for those of newer weights
    model, card = load_model(config.checkpoint)
    data, pack = open_frames(open_dataset(config.data), config.pack)
    _check_data(data, card.classes, config.checkpoint)
    size, policy = config.size or card.size, protocol_policy(config.policy or card.eval_policy, config.protocol)
    gmacs = model_stats(model, size).gmacs  # raises if the model can't see pictures of this size
    if pack:
        check_fresh_views(pack, policy, card.render_via or size, "evaluation")
    clips = ClipDataset(data, size=size, render_via=card.render_via, num_classes=len(data.classes), policy=policy,
                  **frame_options(pack, config.loader))  # fmt: skip
    with join_ranks() as ranks:
        batches = _with_progress(
            batches_in_order(clips, config.loader, config.batch_size, ranks), policy.views, data.usable_rows(), ranks
        )
        amp = config.amp == "auto" and has_bfloat16(ranks.device)
        scored = score_videos(to_device(model, ranks.device), batches, len(data.classes), ranks, amp,
                         average=config.average, forward=config.batch_size)  # fmt: skip
        counts = None if scored.has_several_labels else confusion(scored)
        result = {
            **measure(scored),
            "protocol": config.protocol,
            "views": policy.views,
            "average": config.average,
            "size": size,
            "gmacs": gmacs,
            "gflops": gmacs * policy.views,
            "confused": None if counts is None else most_confused(counts, data.classes),
            "checkpoint": str(config.checkpoint),
            "data": str(config.data),
            **state,
        }
        if ranks.first:
            table = per_class(scored)
            try:
                if config.output is not None:
                    with written_at(config.output) as file:
                        _write_files(file, result, scored, table, counts, data)
            finally:  # a full disk must not cost the scores
                with warn_if_it_fails("the tables of the metrics"):
                    _print_result(result, table, data.classes)
    return result


def _state_in_store(checkpoint: Location) -> dict[str, str]:
    """By what a store names the content of a checkpoint. Web servers may have no such name."""
    in_store = isinstance(checkpoint, UrlPath) and not checkpoint.on_web_server
    return {"checkpoint_etag": etag} if in_store and (etag := checkpoint.etag_or_none()) else {}


def _check_data(data: Dataset, classes: tuple[str, ...], checkpoint: Location) -> None:
    if classes != tuple(data.classes):
        difference = first_difference(classes, data.classes, ("in the checkpoint", "in the data set"))
        raise ReskdError(f"{checkpoint} knows other classes than {data.path} has ({difference}): prepare the data set in "
                         f"the checkpoint's order (prepare --class-order {checkpoint})")  # fmt: skip
    if not check_labels(data, single=False)["labelled"]:
        raise ReskdError(f"no clip to evaluate on: all clips of {data.path} are unlabelled. Give a labelled data set")


def most_confused(counts: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """The wrong pairs of a confusion matrix [K,K] with the most clips, and their percentage of the true class's clips."""
    return [
        {"truth": classes[t], "taken_for": classes[p], "clips": int(counts[t, p]),
         "percent": 100 * float(counts[t, p] / counts[t].sum())}
        for t, p in confused_pairs(counts, MAX_CONFUSED)
    ]  # fmt: skip


def _with_progress(batches: Iterable[Batch], views: int, rows: Sequence[np.ndarray], ranks: Ranks) -> Iterator[Batch]:
    """Yield the batches, print the clips that failed, and show the progress: rank 0's, times the number of ranks."""
    total, done, started = sum(map(len, rows)), 0, time.perf_counter()
    with progress_bar("videos", disable=not ranks.first) as bar:
        task = bar.add_task("evaluate", total=total, rate=0.0, note="")
        for batch in raise_errors(batches):
            for line in batch.failures:
                console.print(f"[yellow]failed[/] {line}", highlight=False)
            for line in batch.fallbacks:
                console.print(f"[yellow]fallback[/] {line}", highlight=False)
            yield batch
            done = min(total, done + ranks.world * len(batch.index) // views)
            bar.update(task, completed=done, rate=done / (time.perf_counter() - started))


def _write_files(
    output: Path,
    result: dict,
    scored: ScoredVideos,
    table: dict[str, np.ndarray],
    counts: np.ndarray | None,
    data: Dataset,
) -> None:
    """Write the JSON, and then the files beside it, which may fail with a warning.

    Deletes an earlier evaluation's picture if this one has no confusion matrix.
    """
    write_atomically(output, (json.dumps(result, indent=2) + "\n").encode())
    name = output.name.removesuffix(".json")
    answers = output.with_name(f"{name}.answers.csv")
    with warn_if_it_fails(f"{answers}"):
        write_answers(answers, scored, data)
    beside = output.with_name(f"{name}.classes.csv")
    with warn_if_it_fails(f"{beside}"):
        rows = [["class", *table]]
        for label, *values in zip(data.classes, *(column.tolist() for column in table.values()), strict=True):
            rows.append([label, *("" if value != value else value for value in values)])  # NaN: undefined
        write_atomically(beside, csv_text(rows))
    picture = output.with_name(f"{name}.confusion.png")
    with warn_if_it_fails(f"{picture}"):
        picture.unlink(missing_ok=True)
        if counts is not None:
            plot_confusion(picture, counts, data.classes)


def _print_result(result: dict, table: dict[str, np.ndarray], classes: Sequence[str]) -> None:
    """Print the metrics, the five best and the five worst classes, and the most confused pairs."""
    console.print(f"{result['checkpoint']} on {result['data']}", markup=False, highlight=False, soft_wrap=True)
    summary = Table(show_header=False)
    for name, value in result.items():
        if name not in ("confused", "checkpoint", "checkpoint_etag", "data"):
            summary.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(summary)
    metric = "ap" if result["headline"] == "map" else "recall"
    order = [int(c) for c in np.argsort(-table[metric], kind="stable") if table["clips"][c]]
    ranked = Table("class", "clips", "recall %", "precision %", "AP %", title=f"best and worst classes by {metric}")
    for i, c in enumerate(order):
        if 5 <= i < len(order) - 5:
            if i == 5:
                ranked.add_row("…")
            continue
        figures = (table[name][c] for name in ("recall", "precision", "ap"))
        ranked.add_row(classes[c], str(table["clips"][c]), *("" if v != v else f"{v:.1f}" for v in figures))
    console.print(ranked)
    if result["confused"] is None:
        console.print("no confusion matrix: some clips have several labels")
    for pair in (result["confused"] or ())[:5]:
        console.print(f"{pair['truth']} taken for {pair['taken_for']}: {pair['clips']} clips, {pair['percent']:.0f} %",
                      markup=False, highlight=False)  # fmt: skip
