"""Run one chain of commands with two versions of this project, and compare what the two versions wrote.

    python tests/compare_versions.py OLD_CHECKOUT [NEW_CHECKOUT=.]

Compared are the chunk files and attributes of caches, the tars and rows of data sets and packs, the tensors of checkpoints,
and every metric but times. The exit status is 1 if a command fails or if anything differs; then all files are kept.
The versions run side by side on the CPU, each on one thread. Each command runs `pipeline.py` of its checkout in a fork of
this process, so the large libraries are imported once. No module of the project is imported here: modules move.
"""

import importlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", COLUMNS="160", TERM="dumb")  # before numpy and torch

import av
import numpy as np

LIBRARIES = ("torch.utils.tensorboard", "torchvision", "timm", "zarr", "pydantic", "matplotlib.pyplot")
Process = multiprocessing.get_context("fork").Process
CLASSES = [f"{shape}-{way}" for shape in ("disc", "square") for way in ("across", "down")]


def make_videos(folder: Path) -> None:
    """Folders of classes for train and val, one unreadable file in train, and a CSV that gives some clips two labels."""
    lines = []
    for split, i in [*(("train", i) for i in range(60)), *(("val", i) for i in range(20))]:
        path = folder / split / CLASSES[i % 4] / f"{i:02d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_video(path, CLASSES[i % 4], seed=i + 100 * (split == "val"), frames=12 + i % 5, b_frames=2 * (i % 3 == 0))
        lines.append(f"{path.relative_to(folder)},{','.join(CLASSES[i % 3 : i % 3 + 1 + i % 2])}\n")
    (folder / "train" / CLASSES[0] / "broken.mp4").write_bytes(b"no video")
    (folder / "two.csv").write_text("".join(lines[:24]))


def make_video(path: Path, name: str, seed: int, frames: int, b_frames: int) -> None:
    """A disc or a square that moves across noise of 64x48 px, or down."""
    noise, (y, x) = np.random.default_rng(seed), np.mgrid[:48, :64]
    still, colour, offset = noise.integers(0, 60, (48, 64, 3)), noise.integers(130, 256, 3), noise.integers(12, 36)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": "12", "preset": "veryfast", "bf": str(b_frames)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = 6, 1
        for t in range(frames):
            along = 8 + 32 * t // frames
            dy, dx = (y - along, x - offset) if name.endswith("down") else (y - offset, x - along)
            inside = np.hypot(dy, dx) < 9 if name.startswith("disc") else np.maximum(abs(dy), abs(dx)) < 8
            picture = np.where(inside[..., None], colour, still).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = t
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


NET = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1], "output_stride": 8}
SWIN = {"patch_size": [2, 4, 4], "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": [2, 4, 4]}
POLICY = {"num_frames": 4, "crop": "multi_scale_crop", "scales": [1.0, 0.8], "flip": 0.5}
TEACHER = "runs/teacher/last.safetensors"
RUN = {"data": {"train": "data/train", "val": "data/val"}, "optim": {"lr": 0.08}, "schedule": {"epochs": 1}, "size": 16,
       "model": {"arch": "tsm", "backbone": "resnet18", "args": NET, "num_frames": 4, "dropout": 0.2},
       "batch_size": 8, "log_every": 1, "loader": {"workers": 1}}  # fmt: skip
DISTILLED = {**RUN, "data": {**RUN["data"], "cache": "caches/float16"}}
CACHED = {"data": "data/train", "teacher.checkpoint": TEACHER, "policy": POLICY, "loader.workers": 1, "views": 2}
CACHES = [  # a cache that is named twice grows
    *(("float16", {"views": views}) for views in (1, 2)),
    ("int8", {"targets.logits": "float16", "targets.features": "int8", "teacher.bn": "recalibrate"}),
    ("int4", {"targets.features": "int4"}),
    ("int3", {"targets.features": "int3", "policy.crop": "random_resized_crop"}),
    ("basis", {"targets.features": {"codec": "int8", "dims": 4}}),
    ("grid", {"targets.features": {"codec": "int4", "dims": 4, "grid": [2, 2]}}),
    *(("added", {"targets.features": features}) for features in (None, {"codec": "int8", "energy": 0.9})),
]
COHORT = {  # on the cache float16, all on one stream
    "labels": {},
    "logit_kl": {"losses": {"logit_kl": 1.0, "temperature": 2.0}},
    "feature_mse": {"losses.feature_mse": 5.0},
    "logit_map_kl": {"losses.logit_map_kl": 1.0, "size": 24, "seed": 3},
    "ema": {"losses": {"logit_kl": 1.0, "feature_mse": 1.0}, "ema": 0.9, "render_via": 32},
    "projector": {"losses.feature_mse": 5.0, "model.args.channels": [8, 16, 16, 24], "optim.groups": "tsm"},
    "init": {"init": {"path": TEACHER, "head": "drop"}, "losses.label_smoothing": 0.1, "optim.name": "sgd"},
}
SWEEP = {  # each on a stream of its own
    **{name: {"data.cache": f"caches/{name}"} for name, _ in CACHES},
    "crops": {"data.pack": "packs/crops", "data.val_pack": "packs/val"},
    "all": {"data.pack": "packs/all", "data.cache": None, "policy": POLICY, "losses.feature_mse": 0.0},
}
RUNS = {  # by train-student, before the caches
    "teacher": {"size": 32, "policy": POLICY, "schedule.epochs": 20, "schedule.val_every": 5},
    "tsn": {"model.arch": "tsn"},
    "slowonly": {"model.arch": "slowonly", "init.path": "runs/tsn/last.safetensors"},
    "swin": {"model.arch": "swin", "model.backbone": "swin3d_t", "model.args": SWIN, "optim.groups": "swin"},
}
ONLINE = {"teacher.checkpoint": TEACHER, "losses": {"feature_mse": 5.0, "logit_kl": 1.0}}
LABELS = {"random": {"losses.random_label": True}, "all": {"losses": {"cross_entropy": 0, "binary_cross_entropy": 1}}}


def chain() -> list[list[str]]:
    """The arguments of each command. The videos are in a folder beside the working folder."""
    worker, ordered = sets({"loader.workers": 1}), ["--classes", "data/train"]
    prepare = ["prepare", "--clips-per-shard", "20", *sets({"workers": 1})]
    pack, evaluate = ["pack", "--size", "16", *worker], ["evaluate", "--data", "data/val", *worker]
    return [
        [*prepare, "../videos/train", "--output", "data/train"],
        [*prepare, "../videos/val", "--output", "data/val", *ordered],
        [*prepare, "../videos/two.csv", "--output", "data/two", *ordered],
        *(["train-student", *sets({"output": f"runs/{name}", **RUN, **keys})] for name, keys in RUNS.items()),
        *(["cache-teacher", *sets({"output": f"caches/{name}", **CACHED, **keys})] for name, keys in CACHES),
        ["cache-teacher", "--dry-run", "--probe", "4", "--budget", "1GB", "--student-grid", "2x2",
         *sets({"output": "caches/float16", **CACHED, "views": 3})],
        ["inspect-cache", "caches/basis", "--data", "data/train", "--json", "reports/basis.json"],
        ["inspect-cache", "caches/added", "--clip", f"{CLASSES[0]}_00", "--json", "reports/added.json"],
        ["verify-cache", "caches/int4", "--data", "data/train", "--recompute", "4", "--teacher", TEACHER],
        [*pack, "--data", "data/train", "--output", "packs/crops", "--cache", "caches/float16", "--frames", "crops"],
        [*pack, "--data", "data/train", "--output", "packs/all", "--frames", "all"],
        [*pack, "--data", "data/val", "--output", "packs/val", "--frames", "all", "--psnr", "35"],
        ["train-student", *sets({"output": "runs/cohort", **DISTILLED, "schedule.epochs": 2, "students": COHORT})],
        ["train-student", *sets({"output": "runs/two", **RUN, "data": {"train": "data/two"}, "students": LABELS})],
        ["train-student", *sets({"output": "runs/online", **RUN, **ONLINE})],
        ["sweep", *sets({"output": "runs/sweep", **DISTILLED, "losses.feature_mse": 5.0, "students": SWEEP})],
        ["sweep", "--grid", "size=16,24", "--test", "data/val", *sets({"output": "runs/sizes", **RUN})],
        [*evaluate, "runs/swin/last.safetensors", "--output", "reports/swin.json"],
        [*evaluate, "runs/cohort/ema/best.safetensors", "--output", "reports/packed.json", "--pack", "packs/val", "--size", "16"],
        *([*evaluate, TEACHER, "--output", f"reports/{average}.json", "--protocol", "2x3", "--average", average]
          for average in ("prob", "logit", "feature")),
    ]  # fmt: skip


def sets(keys: dict) -> list[str]:
    return [part for key, value in keys.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def run_chain(checkout: Path, folder: Path) -> None:
    """Run all commands in `folder`. Stop once a command of either version has failed: then the file `failed` is there."""
    (folder / "reports").mkdir(parents=True)
    os.chdir(folder)
    for number, arguments in enumerate(commands := chain(), 1):
        log = Path("reports", f"{number}{'-plan' if '--dry-run' in arguments else ''}.txt")
        began, process = time.perf_counter(), Process(target=run_command, args=(checkout, arguments, log))
        process.start()
        process.join()
        said, seconds = shlex.join(arguments), time.perf_counter() - began
        print(f"{folder.name} {number}/{len(commands)} {seconds:5.1f} s  {said}"[:120], flush=True)
        if process.exitcode:
            Path("../failed").touch()
            print(f"{log.read_text()}\n{checkout}: exit status {process.exitcode} of pipeline.py {said}", flush=True)
        if Path("../failed").exists():
            return


def run_command(checkout: Path, arguments: list[str], log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv, sys.path[0] = ["pipeline.py", *arguments], str(checkout)
    runpy.run_path(str(checkout / "pipeline.py"), run_name="__main__")


RENAMED = {"paid": "teacher_time", "ledger": "cost"}  # the old version's keys -> the new version's
# Keys that are not compared: times; bytes of files that hold times (total, metadata); messages (reason).
LEFT_OUT = re.compile(r"(^|_)(seconds|hours|ms|rate)$|_per_s$|^paid_ledgers$|^(total|metadata|reason)$")
JSON = re.compile(r"(zarr|index|pack|result|sweep|passes|test)\.json|(metrics|quarantine|report)\.jsonl")


def read(side: Path, file: Path) -> tuple[str, Any]:
    """The kind of a file, and what is compared of it; an empty kind where nothing is."""
    if not (side / file).exists():
        return "", "no such file"
    name, top, data = file.name, file.parts[0], (side / file).read_bytes()
    if name.endswith("-plan.txt"):  # of the printed tables, the rows that hold a number
        rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in data.decode().splitlines()]
        return "table of --dry-run", [row for row in rows if len(row) > 1 and any(cell[:1].isdigit() for cell in row)]
    if JSON.fullmatch(name) or (top == "reports" and file.suffix == ".json"):
        lines = data.splitlines() if file.suffix == ".jsonl" else [data]
        return name, [compared(json.loads(line)) for line in lines]
    if file.suffix == ".safetensors":
        start = 8 + int.from_bytes(data[:8], "little")
        header = {name: of for name, of in json.loads(data[8:start]).items() if name != "__metadata__"}
        hashes = {name: sha256(data[start:][slice(*of["data_offsets"])]).hexdigest() for name, of in header.items()}
        return "tensors", {name: [of["dtype"], of["shape"], hashes[name]] for name, of in header.items()}
    if file.suffix in (".tar", ".csv") or name.endswith(".rows.json"):
        return re.sub(r"^\w+", "*", name), sha256(data).hexdigest()
    return ("chunks and constants" if top == "caches" and not name.startswith(".") else ""), sha256(data).hexdigest()


def compared(value: Any) -> Any:
    """JSON with the new names, and without what is not compared."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): compared(part) for key, part in value.items() if not LEFT_OUT.search(key)}
    return [compared(part) for part in value] if isinstance(value, list) else value


def difference(old: Any, new: Any, place: str) -> str | None:
    """The first place where two values differ, with both; None where the values are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [(old.get(key, "nothing"), new.get(key, "nothing"), f"{place} {key}") for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(*pair, f"{place} {i}") for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if json.dumps(old) == json.dumps(new) else f"{place}: {old!r:.300} and {new!r:.300}"
    return next(filter(None, (difference(*part) for part in parts)), None)


def compare(old: Path, new: Path) -> bool:
    """Print a line for each kind of file in each folder. Return whether all are equal."""
    things = {}  # (folder, kind) -> the first difference of each file, or None
    for file in sorted({path.relative_to(side) for side in (old, new) for path in side.rglob("*") if path.is_file()}):
        (kind, mine), (other, theirs) = read(old, file), read(new, file)
        of_kind = things.setdefault(("/".join(file.parts[:-1][:2]), kind or other), [])
        of_kind.append(difference(mine, theirs, str(file)) if kind or other else None)
    for (folder, kind), found in sorted(things.items()):
        first = next(filter(None, found), None)
        verdict = f"DIFFERENT {first}" if first else "equal" if kind else "not compared"
        print(f"{folder:16} {kind or 'others':20} {len(found):4} files  {verdict}")
    return not any(first for found in things.values() for first in found)


def main(old: str, new: str = ".") -> int:
    root, checkouts = Path(tempfile.mkdtemp(prefix="versions-")), (Path(old).resolve(), Path(new).resolve())
    make_videos(root / "videos")
    for library in LIBRARIES:
        importlib.import_module(library)
    other = Process(target=run_chain, args=(checkouts[0], root / "old"))
    other.start()
    run_chain(checkouts[1], root / "new")
    other.join()
    equal = not other.exitcode and not (root / "failed").exists() and compare(root / "old", root / "new")
    if equal:
        shutil.rmtree(root)
    print("all equal" if equal else f"not equal, or a command failed; all files are kept in {root}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
