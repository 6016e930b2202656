"""Work for real actors, and how they die. It imports neither torch nor ray: an actor starts sooner."""

import os
import signal
import time
from pathlib import Path

from cache.errors import ReskdError
from stages.engine.actor import Tell, Units
from stages.engine.check_paths import check_paths


def work(folder: Path, units: Units, tell: Tell) -> None:
    for name, what in units:
        tell.begun(name)
        with open(folder / name, "a") as log:
            log.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "bad":
            raise ReskdError(f"{name} is damaged")
        if what == "meet":  # another unit that is at work at the same time
            while len(list(folder.iterdir())) < 2:
                time.sleep(0.01)
        if what == "full":
            raise OSError(28, "No space left on device", str(folder / name))
        time.sleep(0.05)
        tell.done(name, what)


def checking(folder: Path, inputs: tuple, mark: Path, units: Units, tell: Tell) -> None:
    check_paths(inputs, mark)
    work(folder, units, tell)
