"""Fresh processes begin whatever the temporary folder is called, and start their own ones in the usual way."""

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from stages.runtime.beside import beside
from stages.runtime.fresh_process import fresh_context


@pytest.mark.parametrize("name", [None, "n" * 100])  # None: the folder as it is, in which the server's socket stays
def test_a_long_name_of_the_temporary_folder_stops_none(monkeypatch, name):
    with tempfile.TemporaryDirectory(prefix="t") as short:
        if name is not None:
            os.mkdir(folder := os.path.join(short, name))
            monkeypatch.setattr(tempfile, "tempdir", folder)
        with ProcessPoolExecutor(1, fresh_context("stages.runtime.fresh_process")) as pool:
            assert pool.submit(os.getpid).result() != os.getpid()


def _note_start_method(file: Path) -> None:
    file.write_text(multiprocessing.get_start_method())


def test_a_second_process_starts_workers_as_the_first_does(tmp_path):
    """Spawned ones would import everything anew, each of them."""
    with beside(partial(_note_start_method, tmp_path / "method")) as join:
        join()
    assert (tmp_path / "method").read_text() == multiprocessing.get_start_method()
