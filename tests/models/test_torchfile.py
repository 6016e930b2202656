"""Files that are damaged, are something else, or want to run something."""

import argparse
import collections
import io
import itertools
import os
import pathlib
import pickle
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from cache.errors import ReskdError
from stages.models.weight_files import read_weight_file

STATE = {"a.weight": torch.arange(600.0).view(20, 30), "a.bias": torch.ones(3)}


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def equal(stored):
    assert stored.tensors.keys() == STATE.keys()
    assert all(torch.equal(stored.tensors[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["bare", "state_dict", "meta", "reduce in a tensor's place"])
def test_code_in_a_checkpoint_is_refused_by_name_and_never_run(where, legacy, tmp_path):
    attack = Calls(os.system, f"touch {tmp_path}/run")
    content = {
        "bare": attack,
        "state_dict": {"state_dict": Calls(os.system, f"touch {tmp_path}/run")},
        "meta": {"state_dict": STATE, "meta": {"hooks": [{"deep": (1, attack)}]}},
        "reduce in a tensor's place": {**STATE, "b": attack},
    }[where]
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ReskdError, match=rf"would look up {os.system.__module__}\.system.*export the weights alone"):
        read_weight_file(tmp_path / "net.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "attack, name",
    [
        (Calls(eval, "1"), "eval"),
        (Calls(pickle.loads, b"."), "pickle.loads"),
        (Calls(np.load, "x.npy"), "numpy.load"),
        (Calls(getattr, Calls(__import__, "os"), "system"), "__import__"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
    ids=["eval", "pickle", "numpy", "getattr", "module"],
)
def test_other_calls_and_whole_modules_are_refused_by_name(attack, name, tmp_path):
    torch.save({"state_dict": STATE, "meta": attack}, tmp_path / "net.pth")
    with pytest.raises(ReskdError, match=rf"would look up {name}, .*nothing in a checkpoint is run"):
        read_weight_file(tmp_path / "net.pth")


def test_a_harmless_name_runs_nothing_whatever_it_is_called_with(tmp_path):
    """`getattr` stands in files of mmengine; here it is a name for nothing."""
    torch.save({"state_dict": STATE, "meta": Calls(getattr, "text", "upper")}, tmp_path / "net.pth")
    equal(read_weight_file(tmp_path / "net.pth"))


class Buffer:
    def __init__(self):
        self.log, self.methods = np.array([1.0, 2.0]), {"mean": type(self).mean}

    def mean(self): ...


class Reduced(dict):
    def __reduce_ex__(self, protocol):
        return type(self), (dict(self),)


class Items(dict):
    def __getstate__(self):
        return dict(self)


@pytest.fixture
def foreign_types(monkeypatch):
    """Classes under the names of mmengine's, mmcv's, addict's and yacs's, pickled as theirs are: module -> class."""
    made = {}
    for module, name, base in (
        ("mmengine.logging.history_buffer", "HistoryBuffer", Buffer),
        ("mmengine.config.config", "ConfigDict", Reduced),
        ("mmcv.utils.config", "ConfigDict", Items),
        ("addict.addict", "Dict", Items),
        ("yacs.config", "CfgNode", Items),
    ):
        made[module] = type(name, (base,), {"__module__": module, "__qualname__": name})
        for parent in itertools.accumulate(module.split(".")[:-1], "{}.{}".format):
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: made[module]}))
    monkeypatch.setattr(Buffer.mean, "__module__", "mmengine.logging.history_buffer")
    monkeypatch.setattr(Buffer.mean, "__qualname__", "HistoryBuffer.mean")
    return made


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_trainers_leave_beside_the_weights_is_passed_over(foreign_types, legacy, tmp_path, monkeypatch):
    buffer, *dicts = foreign_types.values()
    content = {
        "meta": {
            "CLASSES": ("x", "y"),
            "best": np.float64(71.5),
            "epoch": np.int64(3),
            "curve": np.arange(5),
            "config": [kind(a=1, b=kind(c=2)) for kind in dicts],
            "args": argparse.Namespace(lr=0.1),
            "work_dir": pathlib.Path("runs"),
        },
        "message_hub": {"log_scalars": {"loss": buffer()}},
        "state_dict": collections.OrderedDict(STATE),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    for module in foreign_types:  # their packages aren't there
        monkeypatch.delitem(sys.modules, module)
    stored = read_weight_file(tmp_path / "net.pth")
    equal(stored)
    assert stored.classes == ("x", "y")


WRAPPERS = ["module.", "_orig_mod.", "model.", "net."]


@pytest.mark.parametrize("prefixes", [*WRAPPERS, "module._orig_mod.", "_orig_mod.module.", "model.net.module."])
def test_prefixes_of_wrappers_are_taken_off_where_all_have_them(prefixes, tmp_path):
    torch.save({prefixes + name: tensor for name, tensor in STATE.items()}, tmp_path / "net.bin")
    equal(read_weight_file(tmp_path / "net.bin"))
    torch.save({**STATE, f"{prefixes}b": torch.zeros(1)}, tmp_path / "net.bin")
    assert f"{prefixes}b" in read_weight_file(tmp_path / "net.bin").tensors


TWICE = {name: 2 * tensor for name, tensor in STATE.items()}
TRAINER = {"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "model_state", "net", "params"])
def test_weights_are_found_under_the_keys_of_many_trainers(key, tmp_path):
    torch.save({**TRAINER, key: STATE}, tmp_path / "net.pth")
    stored = read_weight_file(tmp_path / "net.pth")
    equal(stored)
    assert (stored.key, stored.others) == (key, ())


@pytest.mark.parametrize("key, other", [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("params", "params_ema"),
                                        ("state_dict", "ema_state_dict"), ("model", "net")])  # fmt: skip
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_of_several_weights_in_a_file_those_taken_and_the_others_are_named(key, other, wrapper, tmp_path):
    others = {wrapper + name: tensor for name, tensor in TWICE.items()}
    torch.save({other: others, **TRAINER, key: STATE}, tmp_path / "net.pth")
    stored = read_weight_file(tmp_path / "net.pth")
    equal(stored)
    assert (stored.key, stored.others) == (key, (other,))


@pytest.mark.parametrize(
    "beside, new",
    [
        ({"meta": {"mmengine_version": "0.7.1", "epoch": 3}}, True),
        ({"meta": {"dataset_meta": {"classes": ["a"]}}}, True),
        ({"meta": {"mmaction_version": "1.2.0"}}, True),
        ({"message_hub": {}}, True),
        ({"meta": {"mmaction_version": "0.20.0+6d6685c", "mmcv_version": "1.4.0"}}, False),
        ({"meta": {"CLASSES": ["a"]}}, False),
        ({"meta": None}, False),
        ({}, False),
    ],
    ids=["mmengine", "dataset_meta", "1.2", "message_hub", "0.20", "mmcv", "null", "nothing"],
)
def test_a_file_tells_the_version_of_mmaction2(beside, new, tmp_path):
    torch.save({**beside, "state_dict": STATE}, tmp_path / "net.pth")
    assert read_weight_file(tmp_path / "net.pth").mmaction2_1x is new


def test_safetensors_are_known_by_their_content_too(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "net.bin")
    equal(read_weight_file(tmp_path / "net.bin"))


def bytes_of(content, **kwargs):
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


def a_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    return buffer.getvalue()


def a_script():
    """What sets an archive of `torch.jit.save` apart."""
    buffer = io.BytesIO(bytes_of(STATE))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("net/constants.pkl", b"")
    return buffer.getvalue()


def a_flipped_bit():
    content = bytearray(bytes_of(STATE))
    content[content.index(STATE["a.weight"].numpy().tobytes()) + 1000] ^= 1
    return bytes(content)


LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: b"", "is empty"),
        (lambda: b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (lambda: b"\x00\x01garbage" * 50, "no file of weights|no readable file"),
        (lambda: pickle.dumps({"a": 1}, protocol=4), "no file of weights|no readable file"),
        (lambda: bytes_of(STATE)[:-100], "is truncated or damaged"),
        (lambda: bytes_of(STATE)[:200], "is truncated or damaged"),
        (a_flipped_bit, "is truncated or damaged .*CRC"),
        (lambda: bytes_of(STATE, **LEGACY)[:-100], "is damaged or no file of weights"),
        (lambda: bytes_of(STATE, **LEGACY)[:60], "is damaged or no file of weights"),
        (a_tar, "is a tar archive"),
        (a_script, "is a TorchScript program"),
        (lambda: bytes_of({"epoch": 3, "weights": STATE}), "is a dict with epoch, weights in it, not a state dict"),
        (lambda: bytes_of([torch.zeros(3)]), "is a list, not a state dict"),
        (lambda: bytes_of({**STATE, "epoch": 3}), "'epoch' is a int, not a tensor"),
        (lambda: bytes_of({"a": torch.zeros(3).to_sparse()}), "a is sparse, quantised"),
        (lambda: safetensors.torch.save(STATE)[:-4], "can't be read as safetensors"),
    ],
    ids=["empty", "html", "lfs", "garbage", "pickle", "cut", "cut-early", "bit", "legacy-cut", "legacy-cut-early", "tar",
         "script", "container", "list", "entry", "sparse", "safetensors-cut"],
)  # fmt: skip
def test_a_file_that_is_damaged_or_something_else_is_named_with_a_remedy(content, message, tmp_path):
    (tmp_path / "net.pth").write_bytes(content())
    with pytest.raises(ReskdError, match=f"net.pth.*({message})"):
        read_weight_file(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["none.pth", "."])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(ReskdError, match="does not exist, or is not a file"):
        read_weight_file(tmp_path / name)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = bytes_of(STATE)
    for length in range(1, len(whole), 97):
        (tmp_path / "net.pth").write_bytes(whole[:length])
        with pytest.raises(ReskdError):
            read_weight_file(tmp_path / "net.pth")
