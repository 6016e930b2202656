"""Files that older versions wrote are read, grown and resumed. README.md in this folder says what they are."""

import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from cache.errors import ReskdError
from pipeline import cli
from stages.prepare.recheck import recheck
from stages.stream.pack_files import read_pack

VERSIONS = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))
NEW_NAMES = ["model.rel_pos=upstream", "optim.groups=swin_upstream"]


def _installed(name: str) -> str | None:
    found = [d.version for d in importlib.metadata.distributions(name=name)]
    return found[0] if found else None


# A cache and a pack are of one decoder: another one may read them, but not add to them.
same_decoder = pytest.mark.skipif(_installed("decord") != "0.6.0", reason="the files were made with decord 0.6.0")


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def as_written(request, tmp_path, monkeypatch) -> dict:
    """What the version that wrote the files got from them. A copy of the files is the working directory."""
    shutil.copytree(request.param, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return json.loads(Path("expected.json").read_text())


@pytest.fixture
def expected(as_written) -> dict:
    """As `as_written`; the videos were checked by today's rules."""
    recheck(Path("data"), workers=0)
    return as_written


def run(*arguments: object, fails: bool = False) -> str:
    """Run `pipeline.py ARGUMENTS` in this process; returns what it said, with single blanks."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert (done.exit_code != 0) == fails, done.output
    return " ".join(done.output.split())


def train(config: str, *changes: str, flags: tuple[str, ...] = (), fails: bool = False) -> str:
    changed = (part for c in changes for part in ("--set", c))
    return run("train-student", "--config", config, *changed, *flags, fails=fails)


def rows(folder: str, kind: str = "train") -> list[dict]:
    """Rows of metrics.jsonl without what the clock decides."""
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "clips_per_s"} for row in found if row["kind"] == kind]


def files(folder: str, pattern: str = "*") -> dict[str, bytes]:
    """Contents by the names below the folder."""
    found = sorted(path for path in Path(folder).rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def assert_same(found: object, stored: object, rel: float = 1e-4) -> None:
    """Equal, but for the rounding of floats, which differs between CPUs; a GPU's is not compared."""
    if isinstance(stored, dict):
        assert found.keys() == stored.keys()
        for key in stored:
            assert_same(found[key], stored[key], rel)
    elif isinstance(stored, list):
        assert len(found) == len(stored)
        for pair in zip(found, stored, strict=True):
            assert_same(*pair, rel)
    elif not isinstance(stored, float):
        assert found == stored
    elif not torch.cuda.is_available():
        assert found == pytest.approx(stored, rel=rel, abs=1e-7)


KILLED_AT_RENAMES = """
import itertools, os, shutil, signal
from pathlib import Path
from stages.prepare.recheck import recheck

def until_rename(path, calls):
    rename, count = os.replace, itertools.count(1)
    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL) if next(count) == calls else rename(*paths)
    recheck(path, workers=0)
    os._exit(0)

ended = {}
for calls in (2, 4, 6, 8, 9, 10, 11):  # of three notes, the new index; three rows files, quarantine, changes, index; none
    path = Path(f"killed{calls}")
    shutil.copytree("data", path)
    child = os.fork()
    if not child:
        until_rename(path, calls)
    ended[calls] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for calls in ended:  # after all forks: decord's threads are not forked
    if ended[calls]:
        recheck(Path(f"killed{calls}"), workers=0)
print(*ended.values())
"""


def test_there_are_files():
    assert VERSIONS


@pytest.mark.parametrize("command", [
    ("train-student", "--config", "student.yaml", "--set", "output=new"), ("cache-teacher", "--config", "cache.yaml"),
    ("evaluate", "teacher.safetensors", "--data", "data", "--output", "e.json"), ("pack", "--config", "crops.yaml"),
], ids=lambda command: command[0])  # fmt: skip
def test_videos_that_older_rules_checked_are_to_be_checked_again(as_written, command):
    before = files(".")
    assert "prepare --recheck data" in run(*command, fails=True)
    assert {name: content for name, content in files(".").items() if name in before} == before


def test_a_recheck_finds_every_video_as_it_was(as_written):
    rows_before = files("data", "*.rows.json")
    assert "every video is as it was" in run("prepare", "--recheck", "data")
    assert files("data", "*.rows.json") == rows_before
    assert json.loads(Path("data/index.json").read_text())["changed"] == {}


def test_a_checkpoint_is_evaluated(expected):
    run("evaluate", "teacher.safetensors", "--data", "data", "--output", "evaluation.json")
    evaluation = json.loads(Path("evaluation.json").read_text())
    assert_same({name: evaluation[name] for name in expected["evaluation"]}, expected["evaluation"])


def test_a_cache_is_inspected_and_verified(expected):
    run("inspect-cache", "cache.zarr", "--data", "data", "--json", "cache.json")
    found = json.loads(Path("cache.json").read_text())
    assert found["top1"] == pytest.approx(expected["teacher_top1_on_cached_views"])
    assert (found["views"], found["finished_views"], found["clip_views"]) == (2, 2, 16)
    recompute = ["--recompute", 8, "--teacher", "teacher.safetensors"]
    run("verify-cache", "cache.zarr", "--data", "data", *recompute)  # exit status 0: whole


def test_a_student_trains_from_a_cache(expected):
    train("student.yaml", "output=new", flags=("--dry-run",))
    train("student.yaml", "output=new", "schedule.epochs=1")
    assert [row["step"] for row in rows("new")] == [1, 2, 3, 4]
    assert_same(rows("new")[0], expected["run"]["train"][0])  # before the first update: later rates differ


@same_decoder
def test_a_cache_grows_and_what_was_there_stays(expected):
    before = files("cache.zarr", "c.*")
    run("cache-teacher", "--config", "cache.yaml", "--views", 3)
    after = files("cache.zarr", "c.*")
    assert before.items() < after.items() and before
    run("verify-cache", "cache.zarr", "--data", "data")
    train("student.yaml", "output=new", "schedule.epochs=1", "data.views=3")
    grown = files("cache.zarr")
    run("cache-teacher", "--config", "cache.yaml", "--views", 3)
    assert files("cache.zarr") == grown


@same_decoder
def test_an_unfinished_cache_is_finished(expected):
    shards = json.loads(Path("data/index.json").read_text())["shards"]
    committed = files(f"growing.zarr/{shards[0]['name']}")
    constants = [files(f"growing.zarr/{name}") for name in ("basis", "mean", "scale", "offset")]
    ledgers = [json.loads(line) for text in files("growing.zarr", ".paid-*").values() for line in text.splitlines()]
    spent = {name: sum(line[name] for line in ledgers) for name in ledgers[0]}
    train("basis_student.yaml", flags=("--dry-run", "--allow-partial"))

    run("cache-teacher", "--config", "growing.yaml")
    assert files(f"growing.zarr/{shards[0]['name']}") == committed
    assert [files(f"growing.zarr/{name}") for name in ("basis", "mean", "scale", "offset")] == constants
    assert not files("growing.zarr", ".*")
    run("inspect-cache", "growing.zarr", "--json", "cache.json")
    notes = json.loads(Path("cache.json").read_text())["notes"].values()
    (paid,) = (note for note in notes if isinstance(note, dict) and "clip_views" in note)
    assert paid["clip_views"] == spent["clip_views"] + 2 * shards[1]["clips"]
    assert paid["seconds"] > spent["seconds"] and paid["forward_seconds"] > spent["forward_seconds"]
    run("verify-cache", "growing.zarr", "--data", "data")

    train("basis_student.yaml")
    assert_same(rows("basis_student"), expected["basis_student"]["train"], rel=1e-3)  # int8 may round another way


@same_decoder
def test_a_basis_is_taken_from_a_cache(expected):
    basis = "targets.features={codec: int8, dims: 4, basis: growing.zarr}"
    run("cache-teacher", "--config", "growing.yaml", "--set", "output=new.zarr", "--set", basis)
    for name in ("basis", "mean", "scale", "offset"):
        assert files(f"new.zarr/{name}") == files(f"growing.zarr/{name}") != {}


def test_a_student_reads_a_pack(expected):
    train("student.yaml", "output=new", "schedule.epochs=1", "data.pack=crops", "data.views=1")
    assert [row["failed_clips"] for row in rows("new")] == [0, 0, 0, 0]


def test_a_pack_of_stored_views_whole_frames_is_refused_with_the_remedy(expected):
    before = files("views")
    train_it = ["train-student", "--config", "student.yaml", "--set", "data.pack=views", "--dry-run"]
    for command in (train_it, ["pack", "--config", "crops.yaml", "--output", "views"]):
        said = run(*command, fails=True)
        assert "run `pack` with frames: crops (or all) into a new folder" in said and "damaged" not in said
    assert files("views") == before


@same_decoder
def test_a_finished_pack_is_left_alone_and_a_lost_shard_is_packed_again(expected):
    shards = [Path("crops", name) for name in ("000000.tar", "000001.tar")]
    before, times = files("crops"), [shard.stat().st_mtime_ns for shard in shards]
    run("pack", "--config", "crops.yaml")
    assert files("crops") == before and [shard.stat().st_mtime_ns for shard in shards] == times
    shards[1].unlink()
    run("pack", "--config", "crops.yaml")
    assert shards[0].stat().st_mtime_ns == times[0] and shards[1].exists()


@pytest.mark.parametrize("names", [[], NEW_NAMES], ids=["old names", "new names"])
def test_a_run_is_resumed(expected, names):
    before = rows("run")
    train("student.yaml", *names, flags=("--resume",))
    assert len(before) < len(rows("run"))
    assert_same({kind: rows("run", kind) for kind in expected["run"]}, expected["run"])


def test_a_run_of_another_config_is_still_refused(expected):
    other = ["--config", "student.yaml", "--set", "model.rel_pos=exact", "--resume"]
    assert "model.rel_pos" in run("train-student", *other, fails=True)


def test_old_names_are_read_and_new_ones_written(expected):
    train("teacher.yaml", "output=new", "schedule.epochs=1")
    config = yaml.safe_load(Path("new/config.yaml").read_text())
    assert (config["model"]["rel_pos"], config["optim"]["groups"]) == ("upstream", "swin_upstream")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("cache.zarr/zarr.json", ["inspect-cache", "cache.zarr"]),
        ("cache.zarr/zarr.json", ["cache-teacher", "--config", "cache.yaml"]),
        ("data/index.json", ["train-student", "--config", "teacher.yaml"]),
        ("crops/pack.json", ["pack", "--config", "crops.yaml"]),
        ("crops/pack.json", ["train-student", "--config", "student.yaml", "--set", "data.pack=crops", "--dry-run"]),
    ],
)
def test_a_newer_format_is_refused_with_what_to_do(expected, file, command):
    node = json.loads(Path(file).read_text())
    node.get("attributes", node)["format"] = 99
    Path(file).write_text(json.dumps(node))
    before = files(".")
    said = run(*command, fails=True)
    assert "99" in said and re.search("anew|new folder|version of reskd", said)
    assert before.items() <= files(".").items()


def test_a_newer_format_is_named_even_if_nothing_else_is_known(tmp_path):
    (tmp_path / "pack.json").write_text('{"format": 99}')
    with pytest.raises(ReskdError, match="format version 99, this program reads"):
        read_pack(tmp_path)


@pytest.fixture
def older_rules(tmp_path, monkeypatch) -> None:
    """Files that were made by the first rules for frames, some of them from videos whose frames are others now."""
    shutil.copytree(Path(__file__).parent / "older_rules", tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")


CHANGED = {
    "up_nonkey": {"decoder", "frames"}, "left_mirrored48": set(), "down_mirrored": {"decoder"}, "right_false_sync": {"decoder"},
    "right_size": {"decoder", "frames", "width", "height", "error"},
}  # fmt: skip


def changes() -> dict[str, dict]:
    lines = [json.loads(line) for line in Path("data/recheck.jsonl").read_text().splitlines()]
    return {Path(line["path"]).stem: line for line in lines}


def test_a_recheck_lists_the_videos_whose_frames_are_others_now(older_rules):
    said = run("prepare", "--recheck", "data")
    assert "5 videos changed" in said
    found = changes()
    assert {key: line.keys() - {"path", "shard", "row"} for key, line in found.items()} == {
        key: names - {"start"} | ({"decoder"} if key == "left_mirrored48" else set()) for key, names in CHANGED.items()
    }
    assert found["up_nonkey"]["frames"] == [31, 28]
    quarantine = [json.loads(line) for line in Path("data/quarantine.jsonl").read_text().splitlines()]
    assert [line["path"] for line in quarantine] == [found["right_size"]["path"]]
    index = json.loads(Path("data/index.json").read_text())
    assert index["rules"] == 2 and [entry.get("rules", 1) for entry in index["shards"]] == [2, 2, 2]
    assert index["changed"] == {
        entry["name"]: {str(line["row"]): 2 for line in found.values() if line["shard"] == entry["name"]}
        for entry in index["shards"]
    }
    before = files("data")
    assert "every video is as it was" in run("prepare", "--recheck", "data")
    assert files("data", "*.tar*") == {name: data for name, data in before.items() if ".tar" in name}
    assert json.loads(Path("data/index.json").read_text()) == index


def test_changed_videos_are_masked_in_an_older_cache_until_their_shards_are_made_anew(older_rules):
    recheck(Path("data"), workers=0)
    said = train("student.yaml", "output=masked", "schedule.epochs=1", "data.val=null")
    assert "4 clips are left out: newer rules changed their frames" in said  # the fifth is in quarantine
    assert rows("masked")[-1]["step"] == 3  # 6 clips in batches of 2
    before = files("cache.zarr", "c.*")
    assert "22" in run("cache-teacher", "--config", "cache.yaml", "--dry-run").split("clip_views_missing")[1][:20]
    run("cache-teacher", "--config", "cache.yaml")
    after = files("cache.zarr", "c.*")
    assert {*after} - {*before} == {"channel_std/c.0"}  # which older caches don't have
    assert all(name in after for name in before) and any(after[name] != before[name] for name in before)
    run("verify-cache", "cache.zarr", "--data", "data", "--recompute", 20, "--teacher", "teacher.safetensors")
    said = train("student.yaml", "output=whole", "schedule.epochs=1", "data.val=null")
    assert "newer rules" not in said and rows("whole")[-1]["step"] == 5  # 10 clips


def test_and_in_an_older_pack(older_rules):
    recheck(Path("data"), workers=0)
    student = ["student.yaml", "schedule.epochs=1", "data.val=null", "data.pack=crops", "data.views=1"]
    train(*student, "output=masked")
    assert rows("masked")[-1]["step"] == 3
    assert "run cache-teacher again first" in run("pack", "--config", "crops.yaml", fails=True)
    run("cache-teacher", "--config", "cache.yaml")
    run("pack", "--config", "crops.yaml")
    train(*student, "output=whole")
    assert rows("whole")[-1]["step"] == 5


def test_a_killed_recheck_is_continued(older_rules, zygote):
    shutil.copytree("data", "whole")
    recheck(Path("whole"), workers=0)
    Path("kills.py").write_text(KILLED_AT_RENAMES)
    said = zygote.run(["python", "kills.py"], cwd=Path.cwd())
    assert said.splitlines()[-1] == "-9 -9 -9 -9 -9 -9 0"
    killed = sorted(Path().glob("killed*"))
    assert len(killed) == 7 and all(files(str(path)) == files("whole") for path in killed)


def test_a_data_set_that_was_made_anew_does_not_join_an_older_cache(older_rules):
    for file in Path("data").glob("*.tar"):
        Path("tars").mkdir(exist_ok=True)
        shutil.copy(file, "tars")
    run("prepare", "tars", "--output", "anew", "--classes", "data")
    said = train("student.yaml", "output=new", "data.train=anew", "data.val=null", fails=True)
    assert "was made by rules 1" in said and "cache-teacher" in said
