"""Packs a data set and dies at the k-th call that touches the disk, for every k; see tests/cache/kill_driver.py.

Started by test_pack.py as a process of its own. Prints one JSON object: {"calls": how many there are, "states": how many
different folders the kills left behind, "wrong": [what went wrong at which k]}.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from kill_driver import DIED, die_at, in_child

from stages.config import PackConfig
from stages.data.packs import open_pack
from stages.pack import pack
from tests.runs import tree


def whole_or_not_there(path: Path, wanted: dict[str, str]) -> None:
    """A shard whose rows are there is as it will be, and a pack that says it is finished has all."""
    found = tree(path)
    for name in found:
        if name.endswith(".rows.json"):
            shard = name.removesuffix(".rows.json")
            assert (found[name], found.get(shard)) == (wanted[name], wanted[shard]), f"{shard} is half there"
    if "pack.json" in found and json.loads((path / "pack.json").read_bytes())["finished"]:
        assert wanted.items() <= found.items(), "finished, and not whole"
        open_pack(path).check_files()


def run(data: Path, cache: Path, folder: Path) -> dict:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written: only a power cut would

    def config(name: str) -> PackConfig:
        return PackConfig(data=data, cache=cache, output=folder / name, size=16, loader={"workers": 0})

    def killed(k: int) -> int:
        calls = die_at(k)
        pack(config("killed"))
        return calls[0]

    path, wrong, seen = folder / "killed", [], set()
    status, calls = in_child(killed, 0)
    assert status == 0, calls
    wanted = tree(path)
    for k in range(1, int(calls) + 1):
        shutil.rmtree(path, ignore_errors=True)
        status, text = in_child(killed, k)
        if status != DIED:
            wrong.append(f"call {k} did not kill: {status} {text}")
        state = frozenset(tree(path).items())
        if state in seen:
            continue
        seen.add(state)
        for what, (status, text) in (
            ("left", in_child(whole_or_not_there, path, wanted)),
            ("rerun", in_child(pack, config("killed"))),
        ):
            wrong += [f"call {k}, {what}: {text}"] if status else []
        if tree(path) != wanted:
            wrong.append(f"call {k}: the rerun ends in other files: {sorted(tree(path).items() ^ wanted.items())[:6]}")
    return {"calls": int(calls), "states": len(seen), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(run(*map(Path, sys.argv[1:4]))))
