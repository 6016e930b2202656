"""The logs of a run whose folder vanishes."""

import threading

from stages.runtime.log import RunLog


def test_a_vanished_folder_costs_tensorboards_logs_without_a_traceback(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # without pytest
    folder = tmp_path / "run"
    folder.mkdir()
    log = RunLog(folder, 0)
    (board,) = (thread for thread in threading.enumerate() if type(thread).__module__.startswith("tensorboard."))
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
