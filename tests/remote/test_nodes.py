"""Training on several machines: torchrun's own rendezvous, two "nodes" of two processes each on loopback."""

import re
import signal
import time
from pathlib import Path

import pytest
import torch

from stages.bench.s3_server import free_port
from stages.remote.url_path import UrlPath
from stages.student.state import load_state
from tests.runs import QUICK, rows_of
from tests.zygote import ROOT, Command

# The processes are forks of the launcher: so they needn't import torch once more.
FORKED = ["--run-path", "--start-method", "fork"]


def torchrun_line() -> list[str]:
    """The options in the line of configs/README.md, for two machines of two processes each and a free port."""
    (line,) = re.findall(r"uv run torchrun (--nnodes .*) pipeline.py", (ROOT / "configs/README.md").read_text())
    for given, ours in (("NODES", "2"), ("GPUS", "2"), ("HOST:29400", f"127.0.0.1:{free_port()}"), ("NAME", "test")):
        assert given in line
        line = line.replace(given, ours)
    return line.split()


def test_two_nodes_of_two_processes_are_one_of_four(zygote, s3, data, tmp_path):
    """Also after a signal, as Slurm sends it to torchrun. The nodes have no common folder for the run: its output is a URL."""
    sets = [f"data.train={data.val}", *QUICK, "size=16", "model.dropout=0", "batch_size=1", "schedule.epochs=2"]
    train = ["train-student", *(part for change in sets for part in ("--set", change))]
    zygote.run_ranks([*train, "--set", f"output={tmp_path / 'one'}"], world=4)
    url = UrlPath(s3.bucket) / "nodes"
    (url / "../there").write_bytes(b"")  # the server makes a bucket at its first object

    def start() -> list[Command]:
        line, nodes = torchrun_line(), []
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            environment = s3.environment | {"TMPDIR": str(tmp_path / name), "CUDA_VISIBLE_DEVICES": ""}
            command = ["torchrun", *line, *FORKED, ROOT / "pipeline.py", *train, "--set", f"output={url}", "--resume"]
            nodes.append(zygote.start(command, **environment))
        return nodes

    nodes, end = start(), time.monotonic() + 60
    while not (logs := list(tmp_path.glob("[ab]/*/*/metrics.jsonl"))) or len(rows_of(logs[0].parent)) < 3:
        assert time.monotonic() < end, nodes[0].said() + nodes[1].said()
        time.sleep(0.01)
    for node in nodes:
        node.kill(signal.SIGTERM, group=False)
    for node in nodes:
        node.wait()
    step = fetched(url, tmp_path / "stopped")["step"]
    assert 3 <= step == len(rows_of(tmp_path / "stopped")) < 20
    assert not list(tmp_path.glob("[ab]/*/*/*"))  # all is at the URL
    for node in start():
        assert node.wait() == 0, node.said()
    ours, theirs = fetched(url, tmp_path / "two")["model"], load_state(tmp_path / "one" / "last.pt")["model"]
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("two", "one")]
    assert losses[0][:step] == losses[1][:step] and len(losses[0]) == 20
    assert losses[0] == pytest.approx(
        losses[1], rel=1e-5
    )  # at its start DDP adds gradients in another order for a step
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5), name


def fetched(url: UrlPath, folder: Path) -> dict:
    """The checkpoint at a URL, and metrics.jsonl in `folder`."""
    folder.mkdir()
    for name in ("metrics.jsonl", "last.pt"):
        (folder / name).write_bytes((url / name).read_bytes())
    return load_state(folder / "last.pt")
