"""The logs of a run: a folder that vanishes, files that are damaged."""

import threading

import pytest

from cache.errors import ReskdError
from stages.config.json_result import read_result
from stages.runtime.log import RunLog, read_metrics


def test_a_vanished_folder_costs_tensorboards_logs_without_a_traceback(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # without pytest
    folder = tmp_path / "run"
    folder.mkdir()
    before = set(threading.enumerate())
    log = RunLog(folder, 0)
    (board,) = set(threading.enumerate()) - before
    folder.rename(tmp_path / "elsewhere")
    log.row("train", 1, {"loss": 1.0})
    board._next_flush_time = 0  # it writes twice a minute or so
    for step in range(2, 2000):
        log.row("train", step, {"loss": 1.0})
        if log.board is None:
            break
    log.close()
    said = " ".join(capfd.readouterr().err.split())
    assert "no more TensorBoard logs" in said and "Traceback" not in said


def test_errors_of_other_threads_are_still_printed(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    RunLog(tmp_path, 0).close()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("line", ["[1, 2]", "{}", '{"step": "1"}', "[" * 100_000, "{"])
def test_a_damaged_log_is_an_error_that_names_it(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"kind": "train", "step": 1}}\n{line}\n')
    with pytest.raises(ReskdError, match=r"metrics.jsonl can't be read \(.*--overwrite"):
        read_metrics(tmp_path)


def test_a_last_line_that_a_kill_has_cut_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_a_damaged_result_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ReskdError, match=r"result.json can't be read .* delete it"):
        read_result(tmp_path / "result.json")
