"""Fresh processes begin whatever the temporary folder is called."""

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor

import pytest

from stages.runtime.fresh_process import fresh_context


@pytest.mark.parametrize("name", [None, "n" * 100])  # None: the folder as it is, in which the server's socket stays
def test_a_long_name_of_the_temporary_folder_stops_none(monkeypatch, name):
    with tempfile.TemporaryDirectory(prefix="t") as short:
        if name is not None:
            os.mkdir(folder := os.path.join(short, name))
            monkeypatch.setattr(tempfile, "tempdir", folder)
        with ProcessPoolExecutor(1, fresh_context("stages.runtime.fresh_process")) as pool:
            assert pool.submit(os.getpid).result() != os.getpid()
