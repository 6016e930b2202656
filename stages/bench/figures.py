"""The figures of the benches: what was measured, and its goal."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from stages.config.json_result import STDOUT, write_json
from stages.runtime.terminal import console


@dataclass(frozen=True)
class Figure:
    """`spread`: the standard deviation over seeds, or the distance of the quartiles over runs. `ok`: None without a goal."""

    name: str
    value: float
    unit: str
    spread: float | None = None
    goal: str | None = None
    ok: bool | None = None


def at_most(name: str, values: Sequence[float], unit: str, most: float) -> Figure:
    """The median of runs. The goal is at most `most`."""
    value, spread = median_of(values)
    return Figure(name, value, unit, spread, f"<= {most:g}", value <= most)


def at_least(name: str, values: Sequence[float], unit: str, least: float) -> Figure:
    """The median of runs. The goal is at least `least`."""
    value, spread = median_of(values)
    return Figure(name, value, unit, spread, f">= {least:g}", value >= least)


def measured(name: str, values: Sequence[float], unit: str) -> Figure:
    """The median of runs, without a goal."""
    value, spread = median_of(values)
    return Figure(name, value, unit, spread)


def median_of(values: Sequence[float]) -> tuple[float, float]:
    """The median and the distance of the quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(high - low)


def picture_path(output: Path | None, default: Path) -> Path:
    """The place of a bench's picture: beside the figures' file, or else `default`."""
    return default if output in (None, STDOUT) else output.with_suffix(".png")


def show(title: str, figures: Sequence[Figure], output: Path | None) -> None:
    """Print the figures and the machine. Write the figures as a JSON list into `output`, unless it is None."""
    if output is not None:
        write_json(output, figures)
    table = Table("figure", "value", "spread", "goal", "", title=title)
    for figure in figures:
        mark = "" if figure.ok is None else "ok" if figure.ok else "[bold red]missed[/]"
        spread = "" if figure.spread is None else f"± {figure.spread:.3g}"
        table.add_row(figure.name, f"{figure.value:.4g} {figure.unit}", spread, figure.goal or "", mark)
    console.print(table)
    console.print(machine(), highlight=False)


@contextmanager
def profiled(trace: Path | None) -> Iterator[None]:
    """Profile the context with torch.profiler and write a trace for chrome://tracing. Does nothing if `trace` is None."""
    if trace is None:
        yield
        return
    with torch.profiler.profile() as profiler:  # of all devices
        yield
    profiler.export_chrome_trace(str(trace))
    console.print(f"written: {trace}")


def machine() -> str:
    """The machine's cores or GPU, and versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, no GPU"
    return f"{platform.machine()}, {device}; Python {platform.python_version()}, torch {torch.__version__}"
