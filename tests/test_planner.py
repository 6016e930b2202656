"""The size planner: bytes that come true, errors that are those of the estimate, budgets, refusals."""

import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cache.codecs import encode_float16
from cache.errors import ReskdError
from cache.group import load_manifest
from pipeline import cli
from stages.config.sizes import format_size, parse_size
from stages.shards.dataset import open_dataset
from stages.teacher import probe as probing
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.config import FeaturesConfig
from stages.teacher.encodings import ProbeOutput, candidates, measure_prices
from stages.teacher.load_teacher import load_teacher
from stages.teacher.probe import Probe, teacher_hours
from stages.teacher.reduction import Sample, encoding_error, estimate_constants
from stages.teacher.size_planner import parse_grid
from stages.video.decode import DecodeError
from tests.cache.small_caches import identity_of
from tests.runs import cache_config, sets

FEW_LEVELS = ("int4", "int3")  # priced beside the others

# ---- sizes ----


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("200GB", 200 * 10**9),
        ("1.5TB", 1_500_000_000_000),
        ("500 MB", 500_000_000),
        ("64GiB", 64 * 2**30),
        ("10kB", 10_000),
        ("7B", 7),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "200", "200 G", "GB", "-1GB", "1e3GB", "1,5TB", "200gb", "0GB", "0.1B", "٣GB", "1GB2"]
)
def test_what_is_no_size(text):
    with pytest.raises(ReskdError, match="is no size: give a number and one of B, kB.*such as 200GB"):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 999, 1000, 12_345, 999_600, 10**9, 3 * 10**15])
def test_sizes_are_shown_as_they_are_read(size):
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.01)


def test_grids():
    assert parse_grid("4x4") == (4, 4) and parse_grid("3×14") == (3, 14)
    for text in ("4", "4x", "0x4", "4x4x4", "a"):
        with pytest.raises(ReskdError, match="is no grid"):
            parse_grid(text)


# ---- encodings ----


def test_candidates_of_a_wide_teacher():
    found = candidates((8, 7, 7, 2048), None, (4, 4))
    found = [e for e in found if e.name not in FEW_LEVELS]
    names = [
        "float16",
        "int8",
        *(f"int8, {dims} dims" for dims in (1024, 512, 256, 128)),
        "int4, 256 dims",
        "int4, 256 dims turned",
        "int8, 4×4",
    ]
    assert [e.name for e in found][:9] == names
    assert found[-1].setting == "targets.features=null" and found[0].setting == "targets.features=float16"
    assert found[9].setting == "targets.features={codec: int8, dims: 1024, grid: [4, 4]}"
    assert found[-3].setting == "targets.features={codec: int4, dims: 256, grid: [4, 4]}"
    assert found[-2].setting == "targets.features={codec: int4, dims: 256, grid: [4, 4], rotate: hadamard}"
    own = FeaturesConfig(codec="int8", energy=0.9, time=4, sample=99)
    first, second, *_ = candidates((8, 7, 7, 2048), own, None)
    assert first.name == "as configured" and first.features.energy == 0.9
    assert second.setting == "targets.features={time: 4}"
    assert candidates((8, 7, 7, 16), FeaturesConfig(codec="int8", dims=4), None)[0].name == "float16"
    with pytest.raises(ReskdError, match="can't be reduced to 9"):
        candidates((8, 7, 7, 16), None, (9, 9))


def test_prices_are_those_of_the_estimate_itself():
    """A basis cut out of the larger one is the basis; bytes and errors follow from the same maps."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(16, 16)) * 0.6 ** np.arange(16)[:, None]
    values = np.maximum(rng.normal(size=(20, 2, 4, 4, 16)) @ mix, 0).astype(np.float32)
    held = np.arange(20) % 5 == 4
    views = {"frames": np.zeros((20, 2), np.int32), "box": np.ones((20, 4), np.float32)}
    maps = ProbeOutput(views, rng.normal(size=(20, 5)).astype(np.float32), torch.from_numpy(values), held)
    encodings = candidates((2, 4, 4, 16), FeaturesConfig(energy=0.9), (2, 2))
    prices = {price.encoding.name: price for price in measure_prices(maps, encodings, identity_of({"a.tar": 3}))}
    for name, grid, codec, dims in (
        ("int8, 4 dims", (2, 4, 4), "int8", 4),
        ("int8, 2×2, 8 dims", (2, 2, 2), "int8", 8),
    ):
        sample = Sample(grid, moments=True)
        for low in range(0, 20, 16):
            sample.add(torch.from_numpy(values[low : low + 16]), held[low : low + 16])
        constants = estimate_constants(sample, codec, dims, None)
        assert prices[name].error == pytest.approx(encoding_error(sample, constants), rel=1e-4)
        assert prices[name].constants == 4 * (dims * 16 + 16 + 2 * dims + 5 * (dims + 1))
    assert 0.85 < prices["as configured"].error["channels"] < 0.99
    raw = encode_float16("features", values)["features"].nbytes / 20
    bare = prices["logits only"].bytes
    assert 0.5 * raw < prices["float16"].bytes - bare < 1.05 * raw
    sizes = [
        prices[n].bytes for n in ("float16", "int8", "int8, 8 dims", "int8, 4 dims", "int8, 2 dims", "logits only")
    ]
    assert sizes == sorted(sizes, reverse=True) and prices["logits only"].error is None


# ---- the plan ----


def plan_of(config, **options):
    return cache_teacher(config, dry_run=True, **options)


def test_planned_bytes_come_true(data, teacher, cached, tmp_path):
    config = cache_config(tmp_path / "t.zarr", data, teacher)
    plan = plan_of(config, probe=50, grid="2x2")
    assert not list(tmp_path.iterdir())
    assert plan["clip_views_missing"] == 400 and plan["probe"]["clip_views"] == 50 and plan["probe"]["failed"] == 0
    probe = plan["probe"]
    assert min(probe["forward_ms"], probe["decode_ms"], probe["write_ms"]) > 0 and plan["teacher_hours"] > 0
    rows = {row["name"]: row for row in plan["encodings"]}
    bases = [("int8", dims) for dims in (8, 4, 2, 1)] + [("int4", 2)]
    names = ["float16", "int8", *(f"{codec}, {dims} dims" for codec, dims in bases), "int8, 2×2"]
    names += [*(f"{codec}, 2×2, {dims} dims" for codec, dims in bases), "logits only"]
    assert [name for name in rows if name not in FEW_LEVELS] == names
    assert [name for name, row in rows.items() if row["configured"]] == ["float16"]
    real = sum(p.stat().st_size for p in cached.glob("*.tar/*/c.*"))
    assert rows["float16"]["bytes_of_clip_view"] == pytest.approx(real / 400, rel=0.1)
    few = cache_config(tmp_path / "i.zarr", data, teacher, "targets.features={codec: int8, dims: 4}", "views=1")
    cache_teacher(few)
    real = sum(p.stat().st_size for p in few.output.glob("*.tar/*/c.*"))
    assert rows["int8, 4 dims"]["bytes_of_clip_view"] == pytest.approx(real / 200, rel=0.15)
    kept = load_manifest(few.output).notes["features"]["channels"]
    assert rows["int8, 4 dims"]["channels"] == pytest.approx(kept, abs=0.1)
    assert rows["int8, 2×2"]["grid"] < 1 == rows["int8"]["grid"] and rows["int8"]["rounding"] < 0.01


def test_the_hours_are_those_of_the_slowest_half(data, teacher, tmp_path, monkeypatch):
    """Of decoding, forwards, and encoding and writing, each in turn."""
    config = cache_config(tmp_path / "t.zarr", data, teacher, "loader.workers=2")
    monkeypatch.setattr(probing, "cores", lambda: 4)
    net, _ = load_teacher(config, open_dataset(config.data), torch.device("cpu"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def hours(decode=0.0, forward=0.0, write=0.0):
        return teacher_hours(config, Probe(None, decode, forward, write, 0), 3600, net)

    assert hours(decode=1) == 1 / 2 and hours(forward=1) == 1 and hours(write=1) == 1 / 4
    assert hours(decode=1, forward=1, write=4) == 6 / 4  # on a CPU all of them share the cores


def test_a_probe_of_none(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "decode_frames", lambda *_: 1 / 0)
    config = cache_config(tmp_path / "t.zarr", data, teacher, "targets.features={codec: int8, energy: 0.9}")
    plan = plan_of(config, probe=0)
    assert plan["probe"] is None and plan["teacher_hours"] is None
    rows = {row["name"]: row for row in plan["encodings"]}
    assert rows["float16"]["bytes_of_clip_view"] == 16 + 16 + 2 + 48 + 2 * 4 * 4 * 4 * 16
    assert rows["logits only"]["bytes"] == 400 * (16 + 16 + 2 + 48)
    assert rows["as configured"]["channels"] is None and rows["as configured"]["bytes"] == rows["int8"]["bytes"]


def test_a_budget_says_what_fits(data, teacher, tmp_path, capfd):
    plan = plan_of(cache_config(tmp_path / "t.zarr", data, teacher), probe=16, budget="150kB")
    fits = {row["name"]: row["fits"] for row in plan["encodings"]}
    assert plan["budget"] == 150_000 and not fits["float16"] and fits["int8, 2 dims"] and fits["logits only"]
    said = capfd.readouterr().err
    assert (
        "int8, 2 dims: --set 'targets.features={codec: int8, dims: 2}'" in said
        and "'targets.features=float16'" not in said
    )


def test_a_budget_that_nothing_fits(data, teacher, tmp_path):
    config = cache_config(tmp_path / "t.zarr", data, teacher)
    with pytest.raises(ReskdError, match=r"nothing fits. The smallest, logits only, takes 32.8 kB for 200 clips in 2 views"
                                         r" \(82 bytes a clip·view\): raise the budget, or lower `views` to 1$"):  # fmt: skip
        plan_of(config, probe=0, budget="20kB")
    with pytest.raises(ReskdError, match="or give fewer clips than 200: one view of them takes 16.4 kB"):
        plan_of(config, probe=0, budget="2kB")


def test_refuses_before_the_probe(data, teacher, tmp_path):
    config = cache_config(tmp_path / "t.zarr", data, teacher)
    for options, said in (({"budget": "much"}, "is no size"), ({"grid": "9x9"}, "can't be reduced to 9")):
        with pytest.raises(ReskdError, match=said):
            plan_of(config, **options)
    with pytest.raises(ReskdError, match="give --dry-run, too"):
        cache_teacher(config, budget="1GB")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_refused_after_the_table(data, teacher, tmp_path, monkeypatch, capfd):
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ReskdError, match=r"GB are missing.*--dry-run --budget"):
        plan_of(cache_config(tmp_path / "t.zarr", data, teacher), probe=0)
    assert "logits only" in capfd.readouterr().err


def test_clips_that_fail_are_counted(data, teacher, tmp_path, monkeypatch):
    config, real, calls = cache_config(tmp_path / "t.zarr", data, teacher), probing.decode_frames, []

    def sometimes(*arguments):
        calls.append(arguments)
        if len(calls) % 3 == 0:
            raise DecodeError("broken")
        return real(*arguments)

    monkeypatch.setattr(probing, "decode_frames", sometimes)
    figures = plan_of(config, probe=9)["probe"]
    assert (figures["clip_views"], figures["failed"]) == (6, 3)

    def never(*arguments):
        raise DecodeError("broken")

    monkeypatch.setattr(probing, "decode_frames", never)
    with pytest.raises(ReskdError, match="none of 9 clips of the probe can be decoded"):
        plan_of(config, probe=9)


def test_the_command(data, teacher, tmp_path):
    config = cache_config(tmp_path / "t.zarr", data, teacher).model_dump(mode="json", exclude_defaults=True)
    options = ["cache-teacher", *sets(config), "--dry-run", "--probe", "5", "--student-grid", "2x2"]
    runner = CliRunner(env={"COLUMNS": "200"})
    done = runner.invoke(cli, [*options, "--budget", "1GB"])
    said = " ".join(done.output.split())
    assert done.exit_code == 0 and "probe of 5 clip·views" in said and "int8, 2×2, 4 dims" in said
    assert "a grid serves the students of that grid" in said
    done = runner.invoke(cli, [*options, "--budget", "1B"])
    assert done.exit_code == 1 and "nothing fits" in done.output and "Traceback" not in done.output
    assert "--budget" in runner.invoke(cli, ["cache-teacher", "--help"]).output
    assert not list(tmp_path.iterdir())
