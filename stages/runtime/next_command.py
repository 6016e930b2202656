"""The command that a user may want next, printed once, whatever the number of processes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from stages.remote.url_path import Location
from stages.runtime.terminal import console


def say_report_command(*folders: Location) -> None:
    """Print the command that makes a page of what is in the folders: in the first one, or, for URLs, on this machine."""
    if os.environ.get("RANK", "0") == "0":
        page = folders[0] / "report.html" if isinstance(folders[0], Path) else "report.html"
        names = shlex.join([*map(str, folders), "--output", str(page)])
        console.print(f"One page with curves and figures: pipeline.py report {names}", highlight=False, soft_wrap=True)
