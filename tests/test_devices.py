"""What is the same on every device, and what is refused where devices don't fit. `device` is every kind that is there."""

import re
import signal
import time

import numpy as np
import pytest
import torch

from cache.errors import ReskdError
from stages.runtime.device_copy import copier
from stages.runtime.distributed import _own_gpu, check_same_kind
from stages.stream.batch import Batch
from tests.runs import QUICK, rows_of


def test_a_batch_is_copied_whole_and_may_be_overwritten_afterwards(device):
    shape, rng = (3, 2, 3, 8, 8), np.random.default_rng(0)
    clips = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    batch = Batch(clips, torch.arange(3), torch.rand(3, 4), torch.tensor([True, False, True]), torch.zeros(3, 3),
                  features=torch.rand(3, 1, 2, 2, 5), other_renderings={(16, None): clips * 2})  # fmt: skip
    batch = batch.pin_memory() if device.type == "cuda" else batch
    wanted, copied = batch._map(torch.clone), batch.copied(copier(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
        batch._map(lambda tensor: tensor.zero_())
    for name in ("clips", "labels", "multi_hot", "usable", "index", "features"):
        assert getattr(copied, name).device.type == device.type
        assert torch.equal(getattr(copied, name).cpu(), getattr(wanted, name))
    assert torch.equal(copied.with_rendering((16, None)).clips.cpu(), wanted.other_renderings[16, None])


def test_on_a_cpu_nothing_is_copied():
    clips = torch.zeros(2)
    assert copier(torch.device("cpu"))(clips) is clips


def test_more_processes_than_gpus_are_refused_with_what_to_start():
    assert _own_gpu(7, 8) == torch.device("cuda", 7)
    with pytest.raises(
        ReskdError, match="process 2 of this machine .* no GPU of its own: it sees 2.*--nproc-per-node 2"
    ):
        _own_gpu(2, 2)


def test_processes_of_different_devices_are_refused_by_name():
    check_same_kind(["a CPU"] * 3)
    with pytest.raises(ReskdError, match="process 0 has a GPU with bfloat16, process 2 has a CPU"):
        check_same_kind(["a GPU with bfloat16", "a GPU with bfloat16", "a CPU"])


def test_a_signal_to_any_process_saves_all_before_the_next_log_row(zygote, data, tmp_path):
    """To the second of two, which writes nothing. The next log row is due at the end of the epoch, after 50 steps."""
    output = tmp_path / "run"
    changes = [f"output={output}", f"data.train={data.train}", *QUICK, "size=16", "batch_size=1", "log_every=100000",
               "checkpoint_every=1", "accumulate=2", "schedule.epochs=100"]  # fmt: skip
    command = ["train-student", *(part for change in changes for part in ("--set", change))]
    running = zygote.start_ranks(command, 2)
    end = time.monotonic() + 60
    while not (output / "last.pt").exists() and time.monotonic() < end:  # both have taken a step
        assert not running[0].status.exists(), running[0].said()
        time.sleep(0.01)
    running[1].kill(signal.SIGTERM, group=False)
    assert [command.wait() for command in running] == [143, 143]
    step = int(re.search(r"stopped at step (\d+) of", re.sub(r"\s+", " ", running[0].said())).group(1))
    assert step < 50 and rows_of(output) == []
    assert torch.load(output / "last.pt", weights_only=True)["step"] == step
