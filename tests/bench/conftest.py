"""What the tests of benches share: fewer processes, and none that imports everything once more."""

import multiprocessing

import pytest

from stages.bench import processes
from tests.zygote import GPUS


@pytest.fixture
def few_processes(monkeypatch):
    """A loader has one process, and `in_new_process` forks this one, which has the imports; no fork can use a GPU."""
    monkeypatch.setattr("stages.stream.loading.cores", lambda: 1)
    if not GPUS:
        monkeypatch.setattr(processes, "fresh_context", lambda *_: multiprocessing.get_context("fork"))
