"""The command that a user may want next, printed once, whatever the number of processes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from stages.remote.url_path import Location
from stages.runtime.terminal import console


def say_report_command(folder: Location) -> None:
    """Print the command that makes a page of what is in `folder`, if that is on this machine: `report` reads no runs at URLs."""
    if isinstance(folder, Path) and os.environ.get("RANK", "0") == "0":
        names = shlex.join([str(folder), "--output", str(folder / "report.html")])
        console.print(f"One page with curves and figures: pipeline.py report {names}", highlight=False, soft_wrap=True)
