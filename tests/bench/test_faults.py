"""`bench faults` on the smallest stages, and the faults that it found."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from cache.errors import ReskdError
from stages.bench.faults import faults
from stages.bench.faults.process import run, start
from stages.bench.faults.stages import OUTPUT, Sizes
from stages.models.checkpoints import read_checkpoint
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.prepare import workers
from stages.runtime.lock import locked
from stages.shards.dataset import open_dataset
from stages.shards.index import read_index
from stages.stream.pack_files import read_pack
from stages.student.run_folder import check_run
from stages.student.state import load_state, save_state
from tests.runs import QUICK, command, train_config, tree

LEFT_OUT = ("prepare val", "train-student", "train-student from a pack", "evaluate", "sweep")
FORM = {"name", "value", "unit", "spread", "goal", "ok"}


def test_every_fault_is_a_figure_and_all_are_right(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "fresh_context", lambda *_: multiprocessing.get_context("fork"))  # it has the imports
    sizes = Sizes(clips=8, clips_per_shard=8, epochs=1, workers=0)
    small = faults.Setup(sizes, ("pack",), kills=1, stride=1000, room=1, flips=1, kinds=("a chunk of the cache",), once=(),
                         clocks=(), left_out=LEFT_OUT, jobs=1)  # fmt: skip
    monkeypatch.setattr(faults, "QUICK", small)
    said = command("bench", "faults", "--quick", "--json", tmp_path / "f.json")
    figures = {figure["name"]: figure for figure in json.loads((tmp_path / "f.json").read_text())}
    assert all(set(figure) == FORM for figure in figures.values())
    tried = {"SIGKILL at a random instant, pack", "SIGKILL at a rename, pack", "a flipped bit, a chunk of the cache"}
    assert tried <= figures.keys() and {name.partition(":")[0] for name in figures.keys() - tried} == {
        "a full disk, then room"
    }
    assert all(figure["ok"] is not False for figure in figures.values()), said
    assert all((figures[name]["value"], figures[name]["ok"]) == (1, True) for name in tried)


@pytest.fixture(scope="module")
def packed(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "pack"
    pack(PackConfig(data=data.val, output=output, frames="all", size=16, loader={"workers": 0}))
    return output


def flips(data: bytes, count: int):
    """The data with one bit flipped, at `count` places."""
    chance = random.Random(0)
    for place in chance.sample(range(len(data)), min(count, len(data))):
        yield place, data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize(("name", "read"), [("index.json", read_index), ("pack.json", read_pack)])
def test_no_flipped_bit_of_a_manifest_is_passed_over(data, packed, tmp_path, name, read):
    source = (data.val if name == "index.json" else packed) / name
    shutil.copy(source, tmp_path)
    whole, refused = read(tmp_path), 0
    for place, damaged in flips(source.read_bytes(), 400):
        (tmp_path / name).write_bytes(damaged)
        try:
            found = read(tmp_path)
        except ReskdError as error:
            assert name in str(error)
            refused += 1
            continue
        if isinstance(found, dict):  # its own digest has another name, and is no digest
            assert {k: v for k, v in found.items() if "sha256" not in whole or v != whole["sha256"]} == {
                k: v for k, v in whole.items() if k != "sha256"}, place  # fmt: skip
        else:
            assert found == whole, place
    assert refused > 350


@pytest.mark.parametrize("kind", ["weights", "state"])
def test_no_flipped_bit_of_a_checkpoint_is_passed_over(teacher, tmp_path, kind):
    file, read = tmp_path / "file", load_state if kind == "state" else (lambda path: read_checkpoint(path)[0])
    if kind == "state":
        save_state(file, read_checkpoint(teacher)[0])
    else:
        shutil.copy(teacher, file)
    whole, refused = read(file), 0
    for place, damaged in flips(file.read_bytes(), 60):
        file.write_bytes(damaged)
        try:
            found = read(file)
        except ReskdError as error:
            assert str(file) in str(error)
            refused += 1
            continue
        assert found.keys() == whole.keys() and all(torch.equal(found[n], whole[n]) for n in whole), place  # padding
    assert refused > (20 if kind == "state" else 50)


def test_a_state_with_another_weight_is_refused_by_its_checksum(tmp_path):
    save_state(tmp_path / "last.pt", {"weight": torch.ones(1000)})
    with zipfile.ZipFile(tmp_path / "last.pt") as archive:
        (entry,) = (info for info in archive.infolist() if info.filename.endswith("data/0"))
    data = bytearray((tmp_path / "last.pt").read_bytes())
    data[data.index(torch.ones(1000).numpy().tobytes()) + 103] ^= 1
    (tmp_path / "last.pt").write_bytes(data)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["weight"].sum() != 1000  # torch itself passes over it
    with pytest.raises(ReskdError, match=rf"{entry.filename} in it has another checksum.*: delete .* to begin anew"):
        load_state(tmp_path / "last.pt")


def test_a_flipped_bit_of_a_video_is_an_error_wherever_it_is_read(data, tmp_path):
    shutil.copytree(data.val, tmp_path / "data")
    row = open_dataset(data.val).rows("000000.tar")[3]
    tar = tmp_path / "data" / "000000.tar"
    content = bytearray(tar.read_bytes())
    content[row.offset + row.size // 2] ^= 1
    tar.write_bytes(content)
    assert open_dataset(tmp_path / "data").read("000000.tar", 2) == open_dataset(data.val).read("000000.tar", 2)
    with pytest.raises(ReskdError, match=rf"000000\.tar: row 3, {row.key}\.mp4: \d+ bytes of other content"):
        open_dataset(tmp_path / "data").read("000000.tar", 3)


@pytest.fixture
def arguments(data) -> list[str]:
    """Of a training that writes into OUTPUT and saves after each step."""
    changes = [
        *QUICK,
        "size=16",
        "checkpoint_every=1",
        "schedule.epochs=20",
        f"output={OUTPUT}",
        f"data.train={data.val}",
    ]
    return ["train-student", *(part for change in changes for part in ("--set", change))]


def test_a_file_that_cannot_be_written_is_an_error_with_its_name(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    ended = run([*arguments, "--set", "loader.workers=0"], tmp_path / "run", limit)
    assert (
        ended.status == 1
        and "Traceback" not in ended.text
        and ended.says("output-a/last.pt: File too large. Make room")
    )


def test_a_full_disk_is_named_even_where_zarr_writes(tmp_path):
    with pytest.raises(OSError) as error, locked(tmp_path / "a.zarr"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "a.zarr") and error.value.errno == errno.ENOSPC


def test_a_run_whose_folder_vanishes_says_so(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    command, folder = start(arguments, tmp_path / "run"), tmp_path / "run" / OUTPUT
    while not (folder / "last.pt").exists() and (ended := command.ended()) is None:
        time.sleep(0.002)
    folder.rename(tmp_path / "elsewhere")
    ended = command.wait()
    assert ended.status == 1 and ended.fault(OUTPUT) is None, ended.text


def test_a_run_that_was_killed_before_its_config_was_there_is_begun_again(data, tmp_path):
    config = train_config(tmp_path / "run", data)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.partial").write_text("output:")
    check_run(config, resume=True, overwrite=False)
    (tmp_path / "run" / "other").touch()
    with pytest.raises(ReskdError, match="not an empty folder"):
        check_run(config, resume=True, overwrite=False)


def test_a_finished_pack_is_not_finished_without_a_shard(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "pack")
    (tmp_path / "pack" / "000000.tar").unlink()
    from stages.stream.pack_files import finish_pack

    with pytest.raises(ReskdError, match=r"000000\.tar: missing, or not as it was packed"):
        finish_pack(tmp_path / "pack", read_pack(packed).identity)
    before = tree(packed)
    finish_pack(packed, read_pack(packed).identity)
    assert tree(packed) == before


def test_prepare_starts_its_workers_again_if_the_first_dies_at_its_start(monkeypatch):
    pools = []

    class Dies(ProcessPoolExecutor):  # killed from outside, before its first task
        def submit(self, *task):
            if pools.append(self) or len(pools) == 1:
                raise BrokenProcessPool
            return super().submit(*task)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Dies)
    with workers.Workers(1) as pool:
        assert list(pool.map([int], None)) == [0] and len(pools) == 3
