"""What a cache will cost: bytes of each encoding and hours of the teacher, from a short probe before the run."""

from __future__ import annotations

import re

from rich.table import Table

from cache.errors import ReskdError
from cache.manifest import Manifest
from stages.config.sizes import format_size, parse_size
from stages.models.video_model import model_stats
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.teacher.config import CacheConfig, FeaturesConfig
from stages.teacher.encodings import Price, bound_prices, candidates, encoding_settings, measure_prices
from stages.teacher.probe import Probe, run_probe, teacher_hours
from stages.teacher.teacher import Teacher, uncompiled

PROBE = 32  # clip·views, by default


def parse_grid(text: str) -> tuple[int, int]:
    """ "4x4" -> (4, 4). Raises ReskdError for anything else."""
    match = re.fullmatch(r"([1-9]\d?)[x×]([1-9]\d?)", text.strip(), re.ASCII)
    if not match:
        raise ReskdError(f"--student-grid {text!r} is no grid: give height and width of the student's map, such as 4x4")
    return int(match[1]), int(match[2])


def plan_sizes(
    config: CacheConfig,
    data: Dataset,
    teacher: Teacher,
    wanted: Manifest,
    missing: int,
    *,
    budget: str | None = None,
    probe: int = PROBE,
    grid: str | None = None,
) -> dict:
    """Measure `probe` clip·views (0: none), and print what each encoding would take.

    `missing`: clip·views that the teacher still has to compute. Returns {"probe": {"clip_views", "failed", "forward_ms",
    "decode_ms" and "write_ms" of a clip·view} or None, "teacher_hours": of one rank, or None, "encodings": [{"name", "setting",
    "configured", "bytes_of_clip_view", "bytes": of the whole cache, "channels", "grid", "rounding": shares of
    `encoding_error`, or None, "fits": None without a budget}], "budget": bytes or None}.
    Raises ReskdError where no encoding fits the budget, after the table is printed.
    """
    budget_bytes = parse_size(budget) if budget is not None else None
    student_grid = parse_grid(grid) if grid is not None else None
    stats = model_stats(uncompiled(teacher.model), teacher.size)
    shape, configured = (*stats.grid, stats.width), config.targets.features
    encodings = candidates(shape, configured, student_grid)
    if config.targets.logits is None:
        encodings = [encoding for encoding in encodings if encoding.features is not None]
    measured = run_probe(config, data, teacher, probe, wanted.identity.targets) if probe else None
    identity, clips = wanted.identity, sum(entry.clips for entry in wanted.identity.shards)
    prices = (
        measure_prices(measured.output, encodings, identity) if measured else bound_prices(encodings, identity, shape)
    )
    rows = [_row(price, configured, clips * wanted.views, budget_bytes) for price in prices]
    plan = {
        "probe": _figures(measured) if measured else None,
        "teacher_hours": teacher_hours(config, measured, missing, teacher) if measured else None,
        "encodings": rows,
        "budget": budget_bytes,
    }
    _show(plan, missing, clips, wanted.views, shape)
    if budget_bytes is not None and not any(row["fits"] for row in rows):
        raise _nothing_fits(min(prices, key=lambda price: price.bytes), clips, wanted.views, budget_bytes)
    return plan


def _figures(probe: Probe) -> dict:
    return {
        "clip_views": len(probe.output.logits),
        "failed": probe.failed,
        "forward_ms": 1e3 * probe.forward,
        "decode_ms": 1e3 * probe.decode,
        "write_ms": 1e3 * probe.write,
    }


def _row(price: Price, configured: FeaturesConfig | None, clip_views: int, budget: int | None) -> dict:
    size = round(price.bytes * clip_views) + price.constants
    return {
        "name": price.encoding.name,
        "setting": price.encoding.setting,
        "configured": price.encoding.features == encoding_settings(configured),
        "bytes_of_clip_view": price.bytes,
        "bytes": size,
        **{name: price.error[name] if price.error else None for name in ("channels", "grid", "rounding")},
        "fits": None if budget is None else size <= budget,
    }


def _show(plan: dict, missing: int, clips: int, views: int, shape: tuple[int, ...]) -> None:
    probe, budget, rows = plan["probe"], plan["budget"], plan["encodings"]
    if probe:
        failed = f" ({probe['failed']} more can't be decoded)" if probe["failed"] else ""
        console.print(f"probe of {probe['clip_views']} clip·views{failed}: the teacher takes {probe['forward_ms']:.1f} ms for "
                      f"one, decoding {probe['decode_ms']:.1f} ms of a core, encoding and writing {probe['write_ms']:.1f} ms; "
                      f"{missing} clip·views: about {plan['teacher_hours']:.2f} hours on one such machine",
                      highlight=False)  # fmt: skip
    title = f"{clips} clips × {views} views, maps of {'×'.join(map(str, shape))}; *: as configured"
    caption = "bytes before zstd, not measured: an upper bound"
    if probe:
        caption = ("bytes: compressed, on the probe's maps; basis and grid: % of the energy that they keep, on its held-out "
                   "clips; error: rounding, in % of the kept energy")  # fmt: skip
    table = Table(title=title, caption=caption)
    table.add_column("features", no_wrap=True)
    for column in ("B each", "cache", "basis", "grid", "error"):
        table.add_column(column, justify="right")
    if budget is not None:
        table.add_column("fits")
    for row in rows:
        shares = [row["channels"], row["grid"], row["rounding"]]
        cells = ["" if share is None else f"{100 * share:.2f}" for share in shares]
        name = row["name"] + "*" * row["configured"]
        fits = [] if budget is None else ["yes" if row["fits"] else "no"]
        table.add_row(name, f"{row['bytes_of_clip_view']:.0f}", format_size(row["bytes"]), *cells, *fits)
    console.print(table)
    for row in rows:
        if row["fits"] or (budget is None and row["configured"]):
            console.print(f"{row['name']}: --set '{row['setting']}'", markup=False, highlight=False, soft_wrap=True)
    if any("×" in row["name"] for row in rows):
        console.print("a grid serves the students of that grid, and feature_mse is the only loss for it")


def _nothing_fits(smallest: Price, clips: int, views: int, budget: int) -> ReskdError:
    needed, one_view = smallest.bytes * clips * views + smallest.constants, smallest.bytes * clips
    fitting_views = int((budget - smallest.constants) // one_view)
    remedy = (f"or lower `views` to {fitting_views}" if fitting_views >= 1
              else f"or give fewer clips than {clips}: one view of them takes {format_size(one_view)}")  # fmt: skip
    return ReskdError(f"--budget {format_size(budget)}: nothing fits. The smallest, {smallest.encoding.name}, takes "
                      f"{format_size(needed)} for {clips} clips in {views} views ({smallest.bytes:.0f} bytes a clip·view): "
                      f"raise the budget, {remedy}")  # fmt: skip
