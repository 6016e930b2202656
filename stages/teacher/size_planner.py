"""What a cache will cost, before it is made: bytes of each encoding and hours of the teacher, from a short probe."""

from __future__ import annotations

import re

from rich.table import Table

from cache.errors import ReskdError
from cache.manifest import Manifest
from stages.models.video_model import model_stats
from stages.runtime.log import console
from stages.shards.dataset import Dataset
from stages.teacher.config import CacheConfig, FeaturesConfig
from stages.teacher.encodings import Price, bound_all, candidates, own_of, price_all
from stages.teacher.probe import Probe, run_probe, teacher_hours
from stages.teacher.teacher import Teacher, plain

PROBE = 32  # clip·views
UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20,
         "GiB": 2**30, "TiB": 2**40}  # fmt: skip


def parse_size(text: str) -> int:
    """ "200GB", "1.5 TB", "64GiB" -> bytes; a GB is 10^9, a GiB 2^30. Raises ReskdError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip(), re.ASCII)
    size = float(match[1]) * UNITS.get(match[2], 0) if match else 0
    if size < 1:
        raise ReskdError(
            f"--budget {text!r} is no size: give a number and one of {', '.join(UNITS)}, such as 200GB or 1.5TB"
        )
    return int(size)


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

    `missing`: clip·views that the teacher hasn't seen. Returns {"probe": {"clip_views", "failed", "forward_ms" and
    "decode_ms" of a clip·view} or None, "teacher_hours": of one rank, or None, "encodings": [{"name", "setting",
    "configured", "bytes_of_clip_view", "bytes": of the whole cache, "channels", "grid", "rounding": shares as `error_of`
    has them, or None, "fits": None without a budget}], "budget": bytes or None}.
    Raises ReskdError for a budget that nothing fits, after it printed the table.
    """
    allowed = parse_size(budget) if budget is not None else None
    asked = parse_grid(grid) if grid is not None else None
    stats = model_stats(plain(teacher.model), teacher.size)
    whole, own = (*stats.grid, stats.width), config.targets.features
    encodings = candidates(whole, own, asked)
    measured = run_probe(config, data, teacher, probe) if probe else None
    identity, clips = wanted.identity, sum(entry.clips for entry in wanted.identity.shards)
    prices = price_all(measured.maps, encodings, identity) if measured else bound_all(encodings, identity, whole)
    rows = [_row(price, own, clips * wanted.views, allowed) for price in prices]
    plan = {
        "probe": _figures(measured) if measured else None,
        "teacher_hours": teacher_hours(config, measured, missing, teacher) if measured else None,
        "encodings": rows,
        "budget": allowed,
    }
    _show(plan, missing, clips, wanted.views, whole)
    if allowed is not None and not any(row["fits"] for row in rows):
        raise _nothing_fits(min(prices, key=lambda price: price.bytes), clips, wanted.views, allowed)
    return plan


def _figures(probe: Probe) -> dict:
    return {
        "clip_views": len(probe.maps.logits),
        "failed": probe.failed,
        "forward_ms": 1e3 * probe.forward,
        "decode_ms": 1e3 * probe.decode,
    }


def _row(price: Price, own: FeaturesConfig | None, clip_views: int, budget: int | None) -> dict:
    size = round(price.bytes * clip_views) + price.constants
    return {
        "name": price.encoding.name,
        "setting": price.encoding.setting,
        "configured": price.encoding.features == own_of(own),
        "bytes_of_clip_view": price.bytes,
        "bytes": size,
        **{name: price.error[name] if price.error else None for name in ("channels", "grid", "rounding")},
        "fits": None if budget is None else size <= budget,
    }


def _show(plan: dict, missing: int, clips: int, views: int, whole: tuple[int, ...]) -> None:
    probe, budget, rows = plan["probe"], plan["budget"], plan["encodings"]
    if probe:
        failed = f" ({probe['failed']} more can't be decoded)" if probe["failed"] else ""
        console.print(f"probe of {probe['clip_views']} clip·views{failed}: the teacher takes {probe['forward_ms']:.1f} ms for "
                      f"one, decoding {probe['decode_ms']:.1f} ms of a core; {missing} clip·views: about "
                      f"{plan['teacher_hours']:.2f} hours on one such machine", highlight=False)  # fmt: skip
    title = f"{clips} clips × {views} views, maps of {'×'.join(map(str, whole))}; *: as configured"
    caption = "bytes before zstd, unmeasured: the most that it can be"
    if probe:
        caption = ("bytes: as compressed on the probe's maps; basis and grid: % of the energy that they keep on its held-out "
                   "clips; error: rounding, in % of the energy kept")  # fmt: skip
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
        table.add_row(name, f"{row['bytes_of_clip_view']:.0f}", shown(row["bytes"]), *cells, *fits)
    console.print(table)
    for row in rows:
        if row["fits"] or (budget is None and row["configured"]):
            console.print(f"{row['name']}: --set '{row['setting']}'", markup=False, highlight=False, soft_wrap=True)
    if any("×" in row["name"] for row in rows):
        console.print("a grid serves the students of that grid, and no loss but feature_mse")


def shown(size: float) -> str:
    """Bytes, as `parse_size` takes them."""
    unit = next((unit for unit in ("TB", "GB", "MB", "kB") if size >= UNITS[unit]), "B")
    return f"{size / UNITS[unit]:.3g} {unit}" if size < 999.5 * UNITS[unit] else f"{size / UNITS[unit]:.0f} {unit}"


def _nothing_fits(smallest: Price, clips: int, views: int, budget: int) -> ReskdError:
    need, one_view = smallest.bytes * clips * views + smallest.constants, smallest.bytes * clips
    fewer = int((budget - smallest.constants) // one_view)
    remedy = (f"or lower `views` to {fewer}" if fewer >= 1
              else f"or give fewer clips than {clips}: one view of them takes {shown(one_view)}")  # fmt: skip
    return ReskdError(f"--budget {shown(budget)}: nothing fits. The smallest, {smallest.encoding.name}, takes {shown(need)} "
                      f"for {clips} clips in {views} views ({smallest.bytes:.0f} bytes a clip·view): raise the budget, "
                      f"{remedy}")  # fmt: skip
