"""Maps stored as fewer numbers: from stage one to the student, with what is verified, restored and refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import zarr

from cache.codecs import CODECS, from_stored
from cache.errors import ReskdError
from cache.group import load_group, load_manifest, read_constants, write_attributes
from cache.reader import CacheReader
from cache.store import file_digest
from cache.writer import ShardWriter
from stages.models.checkpoints import load_model, save_model, weights_sha256
from stages.shards.dataset import open_dataset
from stages.student.train_student import train_student
from stages.teacher import teacher as teachers
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.verify_cache import verify_cache
from stages.video.decode import decode_frames
from stages.video.render import render
from tests.runs import cache_config, rows_of, train_config, tree

LEVELS = {name: codec.levels for name, codec in CODECS["features"].items() if codec.levels}

SHARD, SMALL = "000000.tar", "{codec: int8, dims: 8}"
BOTH = ("logits", "features")


def made(path, few, teacher, features: str, *changes):
    """A cache of these clips whose features are stored so; its config."""
    config = cache_config(path, few, teacher, f"targets.features={features}", *changes)
    cache_teacher(config)
    return config


@pytest.fixture(scope="module")
def raw(few, teacher, tmp_path_factory):
    return made(tmp_path_factory.mktemp("cache") / "raw.zarr", few, teacher, "float16").output


@pytest.fixture(scope="module")
def small(few, teacher, tmp_path_factory):
    """int8 in a basis of 8 of 16 channels; nobody writes to it."""
    return made(tmp_path_factory.mktemp("cache") / "small.zarr", few, teacher, SMALL)


def maps_of(path, view: int = 0) -> tuple[np.ndarray, dict]:
    """The stored maps of all 40 clips, as they are stored, and the constants."""
    reader = CacheReader(path, BOTH)
    return reader.block(SHARD, view, 0).features, reader.constants()


# ---- what is stored ----


def pinv_of_bilinear(target: int, source: int) -> np.ndarray:
    """By torch's own interpolation of unit vectors."""
    eye = torch.eye(source, dtype=torch.float64)[None]
    return np.linalg.pinv(torch.nn.functional.interpolate(eye, target, mode="linear")[0].numpy().T)


def reduced(maps: np.ndarray, grid: tuple[int, int, int], constants) -> np.ndarray:
    maps = maps.astype(np.float64)
    maps = maps.reshape(len(maps), grid[0], -1, *maps.shape[2:]).mean(2)
    maps = np.einsum("gh,nthwd->ntgwd", pinv_of_bilinear(4, grid[1]), maps)
    maps = np.einsum("kw,ntgwd->ntgkd", pinv_of_bilinear(4, grid[2]), maps)
    return (maps - constants["mean"]) @ constants["basis"] if "basis" in constants else maps


@pytest.mark.parametrize(
    "features, grid, width, error",
    [
        ("int4", (4, 4, 4), 16, {"channels": 1.0, "grid": 1.0}),
        (SMALL, (4, 4, 4), 8, {"grid": 1.0}),
        ("{energy: 0.9}", (4, 4, 4), None, {"grid": 1.0}),
        ("{grid: [2, 2]}", (4, 2, 2), 16, {"channels": 1.0}),
        ("{codec: int3, energy: 0.8, time: 2, grid: [3, 2], sample: 20}", (2, 3, 2), None, {}),
    ],
)
def test_codes_are_the_teachers_maps_reduced_and_rounded(
    few, teacher, raw, small, tmp_path, features, grid, width, error
):
    config = small if features == SMALL else made(tmp_path / "t.zarr", few, teacher, features)
    manifest, codec = load_manifest(config.output), config.targets.features.codec
    settings = manifest.identity.targets["features"]
    assert (settings["codec"], settings["grid"], settings["map"]) == (codec, list(grid), [4, 4, 4, 16])
    assert settings["width"] == width if width else 1 < settings["width"] < 16
    for view in range(2):
        stored, constants = maps_of(config.output, view)
        assert stored.dtype == ("float16" if codec == "float16" else "int8")
        assert stored.shape == (40, *grid, settings["width"])
        wanted = reduced(maps_of(raw, view)[0], grid, constants)
        step = 0.0
        if codec != "float16":
            ends = (from_stored(np.full_like(stored, end), constants) for end in (-LEVELS[codec], LEVELS[codec]))
            wanted, step = wanted.clip(*ends), constants["scale"] / 2
            assert np.ptp(stored.astype(int)) > 1.5 * LEVELS[codec]  # the range is used
        rounding = 4e-3 * (1 + np.abs(wanted))  # of float16, there and here
        assert (np.abs(from_stored(stored, constants) - wanted) <= step + rounding).all()
    if config.targets.features.estimated:
        notes = manifest.notes["features"]
        assert notes.items() >= {name: pytest.approx(value) for name, value in error.items()}.items()
        clips = min(config.targets.features.sample, 80)
        assert notes["held_out"] + notes["fitted"] / np.prod(grid) == clips and notes["held_out"] > 0
        assert all(0.2 < notes[name] <= 1 + 1e-9 for name in ("channels", "grid"))
        assert notes["rounding"] < {"int4": 0.05, "int3": 0.3}.get(codec, 1e-3)
    else:
        assert "features" not in manifest.notes
    before = tree(config.output)
    again = cache_teacher(config, verify=10)
    assert again["clip_views"] == 0 and again["verified"] < 0.1 and tree(config.output) == before


def test_energy_is_what_the_error_note_keeps(few, teacher, tmp_path):
    """On clips that weren't fitted on: near what was asked for, and never of fewer directions."""
    notes = []
    for energy in (0.5, 0.95):
        config = made(tmp_path / f"{energy}.zarr", few, teacher, f"{{energy: {energy}}}", "views=1")
        manifest = load_manifest(config.output)
        notes.append((manifest.identity.targets["features"]["width"], manifest.notes["features"]["channels"]))
        assert notes[-1][1] > energy - 0.15
    assert notes[0] < notes[1]


def test_features_are_smaller_by_what_was_asked_for(raw, small):
    def bytes_of(path):
        return sum(p.stat().st_size for p in (path / SHARD / "features").glob("c.*"))

    assert bytes_of(small.output) < 0.4 * bytes_of(raw)  # a quarter before zstd, which half of the raw map's zeros help


def test_a_rerun_that_was_killed_ends_in_the_same_bytes(few, teacher, small, tmp_path, monkeypatch):
    config = small.model_copy(update={"output": tmp_path / "t.zarr"})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(config)
    assert load_manifest(config.output).finalised == 0
    monkeypatch.undo()
    cache_teacher(config)
    assert tree(config.output) == tree(small.output)


# ---- a basis from elsewhere, and a lost one ----


def test_a_basis_of_another_cache_is_taken(few, teacher, small, tmp_path):
    changes = (f"targets.features.basis={small.output}", "policy.seed=7", "views=1")
    config = made(tmp_path / "t.zarr", few, teacher, SMALL, *changes)
    ours, theirs = maps_of(config.output)[1], maps_of(small.output)[1]
    assert ours.keys() == theirs.keys()
    taken = ours.keys() - {"channel_std"}  # which each cache has of its own maps
    assert all(np.array_equal(ours[name], theirs[name]) for name in taken)
    targets = [load_manifest(path).identity.targets for path in (config.output, small.output)]
    assert targets[0] == targets[1]
    assert cache_teacher(config, verify=10)["clip_views"] == 0


def other_teacher(teacher, path, change):
    net, card = load_model(teacher)
    change(net)
    save_model(path, net, card)
    return path


def test_a_basis_of_another_teacher_or_of_other_maps_is_refused_naming_both(few, teacher, small, raw, tmp_path):
    other = other_teacher(teacher, tmp_path / "other.safetensors", lambda net: torch.nn.init.ones_(net.head.fc.bias))
    whose = [
        load_manifest(small.output).identity.teacher["weights_sha256"],
        weights_sha256(load_model(other)[0]),
    ]

    def refuses(match, *changes, by=teacher, basis=small.output):
        asked = ["targets.features={codec: int8, dims: 8}", f"targets.features.basis={basis}", *changes]
        with pytest.raises(ReskdError, match=match):
            cache_teacher(cache_config(tmp_path / "t.zarr", few, by, *asked))

    refuses(
        rf"basis .*small\.zarr: teacher\.weights_sha256: this cache has {whose[0]}, this run wants {whose[1]}", by=other
    )
    refuses(r"small\.zarr: teacher\.size: this cache has 32, this run wants 24", "teacher.size=24")
    refuses(
        r"small\.zarr: targets\.features\.sample: this cache has .*8.*, this run wants .*5.*", "targets.features.dims=5"
    )
    refuses(
        r"small\.zarr: targets\.features\.grid: this cache has .*4, 4, 4.*, this run wants .*4, 2, 2.*",
        "targets.features.grid=[2,2]",
    )
    refuses(r"raw\.zarr: targets\.features\.codec: this cache has float16, this run wants int8", basis=raw)
    refuses("nowhere is not a cache", basis=tmp_path / "nowhere")
    assert not (tmp_path / "t.zarr").exists()


@pytest.mark.parametrize("name", ["basis/c.0.0", "mean/zarr.json", "scale/c.0", "classifier/c.0.0"])
def test_a_lost_file_of_them_is_an_error_until_a_rerun_restores_it(few, teacher, small, tmp_path, name):
    shutil.copytree(small.output, tmp_path / "t.zarr")
    config = small.model_copy(update={"output": tmp_path / "t.zarr"})
    (config.output / name).unlink()
    student = train_config(tmp_path / "run", few, f"data.cache={config.output}", "losses.feature_mse=1")
    with pytest.raises(ReskdError, match=rf"{name}, which is needed to read .* is missing: run cache-teacher again"):
        train_student(student)
    assert cache_teacher(config)["clip_views"] == 0
    assert tree(config.output) == tree(small.output)


def test_a_lost_basis_that_cannot_be_estimated_again_is_taken_from_a_copy(few, teacher, small, tmp_path):
    """A cache that has grown: its sample would be another one."""
    shutil.copytree(small.output, tmp_path / "t.zarr")
    config = small.model_copy(update={"output": tmp_path / "t.zarr", "views": 3})
    assert cache_teacher(config)["clip_views"] == 40
    whole = tree(config.output)
    (config.output / "basis" / "c.0.0").write_bytes(b"")
    damaged = tree(config.output)
    with pytest.raises(ReskdError, match=r"t\.zarr: the basis or the ranges .* lost.*folders basis, mean, .*basis"):
        cache_teacher(config)
    assert tree(config.output) == damaged
    asked = {"output": config.output, "targets.features.basis": small.output, "views": 3}
    changes = [f"{key}={value}" for key, value in asked.items()]
    cache_teacher(cache_config(config.output, few, teacher, "targets.features={codec: int8, dims: 8}", *changes))
    assert tree(config.output) == whole


def test_verify_notices_codes_that_are_not_the_teachers(few, teacher, small, tmp_path):
    """A chunk that another program wrote, in order by its digest: every code of one clip and view is off by three."""
    shutil.copytree(small.output, tmp_path / "t.zarr")
    config = small.model_copy(update={"output": tmp_path / "t.zarr"})
    group = config.output / SHARD
    array = zarr.open_array(group / "features", mode="r+")
    array[:, :] = np.clip(array[:, :].astype(int) + 3, -LEVELS["int8"], LEVELS["int8"]).astype(np.int8)
    node = json.loads((group / "zarr.json").read_text())
    for chunk in (group / "features").glob("c.*"):
        node["attributes"]["files"][f"features/{chunk.name}"] = file_digest(chunk)
    (group / "zarr.json").write_text(json.dumps(node))
    assert cache_teacher(config)["clip_views"] == 0
    with pytest.raises(
        ReskdError, match=r"differ from the teacher's by 0\.0.* \(logits\) and [1-9\.]*0?\.\d+ \(features"
    ):
        cache_teacher(config, verify=5)


# ---- answers that aren't finite ----


def stored_picture(data, path, row: int, view: int) -> torch.Tensor:
    """What the teacher sees of a stored view, uint8 [T,3,32,32]."""
    dataset, block = open_dataset(data), CacheReader(path).block(SHARD, view, 0)
    drawn, of = block.view_of(row), dataset.rows(SHARD)[row]
    pictures, _ = decode_frames(dataset.read(SHARD, row), of.start + drawn.frames, of.decoder)
    return torch.from_numpy(render(pictures, drawn, 32))


def upset_by(upsetting: torch.Tensor, answer: float, monkeypatch) -> None:
    """From now on the teacher's features of this picture are `answer`."""
    whole = teachers.teacher_outputs

    def upset(model, clips, names, dtype):
        given = whole(model, clips, names, dtype)
        bad = (clips == upsetting).flatten(1).all(1)
        return {
            name: v if name == "logits" else v.index_fill(0, bad.nonzero()[:, 0], answer) for name, v in given.items()
        }

    monkeypatch.setattr(teachers, "teacher_outputs", upset)


# Each of the four values, in one of two tests.
@pytest.mark.parametrize(("features", "answer"), [("float16", float("inf")), ("{codec: int8, dims: 8}", float("nan"))])
def test_a_clip_whose_answer_is_not_finite_is_quarantined(few, teacher, raw, tmp_path, monkeypatch, features, answer):
    """In one of its two views."""
    row = 21
    upset_by(stored_picture(few.train, raw, row, 1), answer, monkeypatch)
    config = cache_config(tmp_path / "t.zarr", few, teacher, f"targets.features={features}")
    result, key = cache_teacher(config, verify=40), open_dataset(few.train).rows(SHARD)[row].key
    assert result["quarantined"] == 1
    manifest, reader = load_manifest(config.output), CacheReader(config.output, BOTH)
    assert manifest.quarantine == {SHARD: {row: "the teacher's answer is not finite (features or logits, view 1)"}}
    assert all(np.isfinite(values).all() for values in reader.constants().values())
    blocks = [reader.block(SHARD, view, 0) for view in range(2)]
    assert blocks[0].valid.all() and np.flatnonzero(~blocks[1].valid).tolist() == [row] and blocks[0].keys[row] == key
    assert not blocks[1].features[row].any() and np.isfinite(blocks[1].features.astype(float)).all()
    changes = [f"data.cache={config.output}", "losses.feature_mse=1", "batch_size=8", "schedule.epochs=1"]
    assert train_student(train_config(tmp_path / "run", few, *changes))["clips_seen"] == 32  # of 39


@pytest.mark.parametrize(("features", "answer"), [("float16", float("nan")), ("{codec: int8, dims: 8}", 7e4)])
def test_so_is_one_whose_features_are_added_and_not_finite(few, teacher, raw, tmp_path, monkeypatch, features, answer):
    """What the cache has of the clip stays as it is, for those who read it already; new students leave the clip out."""
    row, path = 21, tmp_path / "t.zarr"
    cache_teacher(cache_config(path, few, teacher, "targets.features=null"))
    before, early = tree(path), CacheReader(path)
    upset_by(stored_picture(few.train, raw, row, 1), answer, monkeypatch)
    config = cache_config(path, few, teacher, f"targets.features={features}", "views=3")
    assert cache_teacher(config, verify=40)["quarantined"] == 1
    assert {name: digest for name, digest in before.items() if "/c." in name}.items() <= tree(path).items()
    manifest, reader = load_manifest(path), CacheReader(path, BOTH)
    assert manifest.quarantine == {SHARD: {row: "the teacher's answer is not finite (features, view 1)"}}
    assert verify_cache(path, data=few.train)["problems"] == []

    late = [reader.block(SHARD, view, 0) for view in range(3)]
    assert [np.flatnonzero(~block.valid).tolist() for block in late] == [[], [row], []]
    assert not late[1].features[row].any() and not late[1].logits[row].any()
    assert np.isfinite(late[1].features.astype(float)).all()
    for of in (early, CacheReader(path)):
        assert of.block(SHARD, 1, 0).valid.all() and of.block(SHARD, 1, 0).logits[row].any()
    changes = [f"data.cache={path}", "losses.feature_mse=1", "batch_size=39", "schedule.epochs=1"]
    assert train_student(train_config(tmp_path / "run", few, *changes))["clips_seen"] == 39
    assert cache_teacher(config)["clip_views"] == 0

    attributes = load_group(path, SHARD)
    write_attributes(path / SHARD, attributes | {"quarantine": {}})
    with pytest.raises(ReskdError, match=rf"view 1, row {row}.*NaN, infinity or nothing for a valid row"):
        CacheReader(path, BOTH).block(SHARD, 1, 0)
    assert "view 1, features missing or not finite" in verify_cache(path)["problems"][0]["what"]


@pytest.mark.parametrize("features", ["float16", "int8", "null"])
def test_a_teacher_whose_answer_is_never_finite_is_an_error(few, teacher, tmp_path, features):
    def spoil(net):
        norms = [module for module in net.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        torch.nn.init.constant_((net.head.fc if features == "null" else norms[-1]).weight, 3e38)

    spoilt = other_teacher(teacher, tmp_path / "nan.safetensors", spoil)
    config = cache_config(tmp_path / "t.zarr", few, spoilt, f"targets.features={features}")
    with pytest.raises(ReskdError, match=r"not finite for any of its 40 clips|outputs are not finite"):
        cache_teacher(config)
    assert not list((tmp_path / "t.zarr").glob("*.tar"))


# ---- students ----

WIDE = "model.args={channels: [8, 16, 16, 24], layers: [1, 1, 1, 1], output_stride: 8}"
QUICK = ["batch_size=8", "schedule.epochs=1", "optim.lr=0.05"]


def trained(few, path, folder, *changes) -> list[dict]:
    """The rows of a short run on a cache."""
    config = train_config(folder, few, f"data.cache={path}", *QUICK, *changes)
    train_student(config)
    return rows_of(config.output)


def losses_of(rows, term=None) -> np.ndarray:
    return np.array([row["loss"] if term is None else row["terms"][term]["value"] for row in rows])


def test_all_channels_in_int8_and_a_basis_teach_as_the_raw_maps_do(few, teacher, raw, tmp_path):
    weights = ["losses.feature_mse=5", "losses.logit_map_kl=0.5", "losses.logit_kl=1", "losses.temperature=2"]
    config = made(tmp_path / "t.zarr", few, teacher, "{codec: int8, dims: 16}")
    theirs, ours = (trained(few, p, tmp_path / p.stem, *weights) for p in (raw, config.output))
    assert len(ours) == 5 and np.allclose(losses_of(ours), losses_of(theirs), rtol=0.02)
    nets = [load_model(tmp_path / p.stem / "last.safetensors")[0].state_dict() for p in (raw, config.output)]
    assert not any("projector" in name for name in nets[1])
    assert nets[0].keys() == nets[1].keys()


def test_a_basis_of_half_the_channels_trains_every_student(few, small, raw, tmp_path):
    weights = ["losses.feature_mse=5", "losses.logit_map_kl=0.5", "losses.temperature=2", "schedule.epochs=4"]
    rows = trained(few, small.output, tmp_path / "same", *weights)
    assert losses_of(rows, "feature_mse")[-5:].mean() < 0.9 * losses_of(rows, "feature_mse")[:5].mean()
    whole = trained(few, raw, tmp_path / "raw", *weights)
    assert losses_of(rows, "feature_mse")[0] <= losses_of(whole, "feature_mse")[0]  # a part of the same sum
    state = torch.load(tmp_path / "same" / "last.pt", weights_only=True)
    constants = read_constants(small.output, load_manifest(small.output))
    assert np.array_equal(
        state["adapter"]["weight"].numpy(), constants["basis"].T
    )  # fixed, from the first step to the last


def test_a_student_of_another_width_is_adapted_to_the_basis(few, small, tmp_path, capfd):
    config = train_config(tmp_path / "run", few, f"data.cache={small.output}", *QUICK, WIDE, "losses.feature_mse=5")
    assert train_student(config, dry_run=True)["projector"] == "24 -> 8 channels"
    assert "24 channels, the targets' 8: a projector" in " ".join(capfd.readouterr().err.split())
    rows = trained(few, small.output, tmp_path / "wide", WIDE, "losses.feature_mse=5", "schedule.epochs=4")
    assert losses_of(rows, "feature_mse")[-5:].mean() < 0.9 * losses_of(rows, "feature_mse")[:5].mean()
    assert torch.load(tmp_path / "wide" / "last.pt", weights_only=True)["adapter"]["weight"].shape == (8, 24)


def test_a_reduced_grid_trains_the_same_student_and_refuses_what_it_does_not_serve(few, teacher, raw, tmp_path):
    """A student of 16 px has a map of 2x2."""
    config = made(tmp_path / "grid.zarr", few, teacher, "{grid: [2, 2]}")
    theirs, ours = (trained(few, p, tmp_path / p.stem, "losses.feature_mse=5") for p in (raw, config.output))
    assert np.allclose(losses_of(ours, "cross_entropy"), losses_of(theirs, "cross_entropy"), rtol=5e-3)
    lost = losses_of(theirs, "feature_mse") - losses_of(ours, "feature_mse")
    assert (lost > 0.1 * losses_of(theirs, "feature_mse")).all()  # what no student of 2x2 can reach isn't counted
    nets = [load_model(tmp_path / p.stem / "last.safetensors")[0].state_dict() for p in (raw, config.output)]
    moved = [(nets[0][n] - nets[1][n]).abs().max() for n in nets[0] if nets[0][n].is_floating_point()]
    assert max(moved) < 0.01

    def refuses(match, *changes):
        with pytest.raises(ReskdError, match=match):
            train_student(train_config(tmp_path / "run", few, f"data.cache={config.output}", *changes))

    refuses(r"feature_mse: .*reduced to 2×2 for students of that grid, but .* 3×3: .*targets\.features\.grid",
            "size=24", "losses.feature_mse=1")  # fmt: skip
    refuses(
        r"logit_map_kl: .*reduced from 4×4 to 2×2.*feature_mse alone.*targets\.features\.grid",
        "losses.logit_map_kl=1",
    )
    assert not (tmp_path / "run").exists()
    trained(few, config.output, tmp_path / "logits", "size=24", "losses.logit_kl=1")  # no map is read


def test_fewer_times_teach_a_student_of_more_unless_the_grid_is_reduced_too(few, teacher, tmp_path, capsys):
    config = made(tmp_path / "t.zarr", few, teacher, "{time: 2}", "views=1")
    run = train_config(tmp_path / "run", few, f"data.cache={config.output}", "losses.feature_mse=1")
    assert train_student(run)["steps"] == 4
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the student's map has 4 times, the teacher's 2: the student's are averaged over the parts") == 1
    config = made(tmp_path / "small.zarr", few, teacher, "{time: 2, grid: [2, 2]}", "views=1")
    run = train_config(tmp_path / "other", few, f"data.cache={config.output}", "losses.feature_mse=1")
    with pytest.raises(
        ReskdError, match=r"reduced to the grid 2×2 and have 2 times, the student's map has 4: reduced maps"
    ):
        train_student(run)


def test_missing_features_name_the_command_that_adds_them(few, teacher, tmp_path):
    config = made(tmp_path / "t.zarr", few, teacher, "null", "views=1")
    run = train_config(tmp_path / "run", few, f"data.cache={config.output}", "losses.feature_mse=1")
    with pytest.raises(ReskdError, match=r"no features, only logits: .*cache-teacher again, with targets\.features"):
        train_student(run)
    cache_teacher(cache_config(config.output, few, teacher, "views=1"))
    assert train_student(run)["steps"] == 4


def test_what_cannot_be_stored_is_refused_before_work(few, teacher, tmp_path):
    def refuses(features, match):
        with pytest.raises(ReskdError, match=match):
            cache_teacher(cache_config(tmp_path / "t.zarr", few, teacher, f"targets.features={features}"))
        assert not (tmp_path / "t.zarr").exists() or not list((tmp_path / "t.zarr").glob("*.tar"))

    refuses("{time: 3}", "time 3: the teacher's map has 4 times; give a divisor")
    refuses("{grid: [8, 8]}", "4 positions a side can't be reduced to 8")
    refuses("{dims: 17}", "dims 17: the teacher's map has 16 channels")
    refuses("{dims: 4, energy: 0.9}", "dims or energy, not both")
