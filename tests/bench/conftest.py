"""What the tests of benches share: new processes that don't import everything once more."""

import multiprocessing

import pytest

from stages.bench import processes
from tests.zygote import GPUS


@pytest.fixture
def forked(monkeypatch):
    """`in_new_process` forks this process, which has the imports; not where there is a GPU, which no fork can use."""
    if not GPUS:
        monkeypatch.setattr(processes, "fresh_context", lambda *_: multiprocessing.get_context("fork"))
