"""Run one chain of commands with two versions of this project, and compare what the two versions wrote.

    python tests/compare_versions.py OLD_CHECKOUT [NEW_CHECKOUT=.]

Compared are the chunk files and attributes of caches, the tars and rows of data sets and packs, the tensors of checkpoints,
and every metric but times. The exit status is 1 if a command fails or if anything differs; then all files are kept.

The versions run side by side on the CPU, each on one thread. Each command runs `pipeline.py` of its checkout in a fork of
this process, so the large libraries are imported once. No module of the project is imported here: modules move.
"""

import hashlib
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
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

LIBRARIES = ("torch.utils.tensorboard", "torchvision", "timm", "torchmetrics", "zarr", "pydantic", "matplotlib.pyplot")
Process = multiprocessing.get_context("fork").Process

# ---- videos ----

CLASSES = [f"{shape}-{way}" for shape in ("disc", "square") for way in ("across", "down")]


def make_videos(folder: Path) -> None:
    """Folders of classes for train and val, one unreadable file in train, and a CSV that gives some clips two labels."""
    lines = []
    for split, count in (("train", 60), ("val", 20)):
        for i in range(count):
            name = f"{split}/{CLASSES[i % 4]}/{i:02d}.mp4"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            make_video(
                folder / name, CLASSES[i % 4], seed=100 * count + i, frames=12 + i % 5, b_frames=2 * (i % 3 == 0)
            )
            lines.append(f"{name},{','.join(CLASSES[i % 3 : i % 3 + 1 + i % 2])}\n")
    (folder / "train" / CLASSES[0] / "broken.mp4").write_bytes(b"no video")
    (folder / "two.csv").write_text("".join(lines[:24]))


def make_video(path: Path, name: str, seed: int, frames: int, b_frames: int) -> None:
    """A disc or a square that moves across noise of 64x48 px, or down."""
    noise, (y, x) = np.random.default_rng(seed), np.mgrid[:48, :64]
    still, colour, offset = noise.integers(0, 120, (48, 64, 3)), noise.integers(130, 256, 3), noise.integers(12, 36)
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
            frame.pts, frame.time_base = t, Fraction(1, 8)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


# ---- the chain of commands ----

NET = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1], "output_stride": 8}
SWIN = {"patch_size": [2, 4, 4], "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": [2, 4, 4]}
POLICY = {"num_frames": 4, "crop": "multi_scale_crop", "scales": [1.0, 0.8], "flip": 0.5}
TEACHER = "runs/teacher/last.safetensors"
RUN = {"data": {"train": "data/train", "val": "data/val"}, "optim": {"lr": 0.02}, "schedule": {"epochs": 1}, "size": 16,
       "model": {"arch": "tsm", "backbone": "resnet18", "args": NET, "num_frames": 4, "dropout": 0.2},
       "batch_size": 8, "log_every": 1, "loader": {"workers": 1}}  # fmt: skip
DISTILLED = {**RUN, "data": {**RUN["data"], "cache": "caches/float16"}}
CACHES = {  # each is made in one step or two
    "float16": [{"views": 1}, {"views": 2}],
    "int8": [{"targets.logits": "float16", "targets.features": "int8", "teacher.bn": "recalibrate"}],
    "int4": [{"targets.features": "int4"}],
    "int3": [{"targets.features": "int3", "policy.crop": "random_resized_crop"}],
    "basis": [{"targets.features": {"codec": "int8", "dims": 4}}],
    "grid": [{"targets.features": {"codec": "int4", "dims": 4, "grid": [2, 2]}}],
    "added": [{"targets.features": None}, {"targets.features": {"codec": "int8", "energy": 0.9}}],
}
COHORT = {  # on the cache float16, all on one stream
    "labels": {},
    "logit_kl": {"losses": {"logit_kl": 1.0, "temperature": 2.0}},
    "feature_mse": {"losses.feature_mse": 5.0},
    "logit_map_kl": {"losses.logit_map_kl": 1.0, "size": 24, "seed": 3},
    "ema": {"losses": {"logit_kl": 1.0, "feature_mse": 1.0}, "ema": 0.9, "render_via": 32},
    "adapter": {"losses.feature_mse": 5.0, "model.args.channels": [8, 16, 16, 24], "optim.groups": "tsm"},
    "init": {"init": {"path": TEACHER, "head": "drop"}, "losses.label_smoothing": 0.1, "optim.name": "sgd"},
}
SWEEP = {  # each on a stream of its own
    **{name: {"data.cache": f"caches/{name}"} for name in CACHES if name != "float16"},
    "mismatch": {"data.mismatch": True, "data.views": 1, "policy": POLICY},
    "views": {"data.pack": "packs/views", "data.val_pack": "packs/val"},
    "crops": {"data.pack": "packs/crops", "data.val_pack": "packs/val"},
    "device": {"data.pack": "packs/views", "loader.render": "device"},
    "all": {"data.pack": "packs/all", "data.cache": None, "policy": POLICY, "losses.feature_mse": 0.0},
}
TWO_LABELS = {
    "random_label": {"losses.random_label": True},
    "binary": {"losses": {"cross_entropy": 0.0, "binary_cross_entropy": 1.0}},
}


def chain() -> Iterator[list[str]]:
    """The arguments of each command. The folder of the videos is beside the working folder."""
    for source, options in (
        ("train", ()),
        ("val", ("--classes", "data/train")),
        ("two.csv", ("--classes", "data/train")),
    ):
        output = ("--output", f"data/{Path(source).stem}", "--clips-per-shard", "20")
        yield command("prepare", {"workers": 1}, f"../videos/{source}", *output, *options)
    for name, changes in {
        "teacher": {"size": 32, "policy": POLICY, "schedule.epochs": 8, "schedule.val_every": 4},
        "tsn": {"model.arch": "tsn"},
        "slowonly": {"model.arch": "slowonly", "init.path": "runs/tsn/last.safetensors"},
        "swin": {"model.arch": "swin", "model.backbone": "swin3d_t", "model.args": SWIN, "optim.groups": "swin"},
    }.items():
        yield command("train-student", {"output": f"runs/{name}", **RUN, **changes})
    fixed = {"data": "data/train", "teacher.checkpoint": TEACHER, "policy": POLICY, "loader.workers": 1, "views": 2}
    for name, changes in [(name, changes) for name, steps in CACHES.items() for changes in steps]:
        yield command("cache-teacher", {"output": f"caches/{name}", **fixed, **changes})
    more = {"output": "caches/float16", **fixed, "views": 3}
    yield command("cache-teacher", more, "--dry-run", "--probe", "4", "--budget", "1GB", "--student-grid", "2x2")
    yield command("inspect-cache", {}, "caches/basis", "--data", "data/train", "--json", "figures/basis.json")
    yield command("inspect-cache", {}, "caches/added", "--clip", f"{CLASSES[0]}_00", "--json", "figures/added.json")
    yield command("verify-cache", {}, "caches/int4", "--data", "data/train", "--recompute", "4", "--teacher", TEACHER)
    for name, source, *options in (
        ("views", "train", "--cache", "caches/float16"),
        ("crops", "train", "--cache", "caches/float16", "--frames", "crops", "--psnr", "35"),
        ("all", "train", "--frames", "all"),
        ("val", "val", "--frames", "all"),
    ):
        output = ("--output", f"packs/{name}", "--data", f"data/{source}", "--size", "16")
        yield command("pack", {"loader.workers": 1}, *output, *options)
    for name, config in {
        "cohort": {**DISTILLED, "schedule.epochs": 2, "students": COHORT},
        "two": {**RUN, "data": {"train": "data/two"}, "students": TWO_LABELS},
        "online": {**RUN, "teacher.checkpoint": TEACHER, "losses.feature_mse": 5.0, "losses.logit_kl": 1.0},
    }.items():
        yield command("train-student", {"output": f"runs/{name}", **config})
    yield command("sweep", {"output": "runs/sweep", **DISTILLED, "losses.feature_mse": 5.0, "students": SWEEP})
    sizes = {"output": "runs/sizes", **DISTILLED, "losses.logit_kl": 1.0}
    yield command("sweep", sizes, "--grid", "size=16,24", "--test", "data/val")
    for name, checkpoint, *options in (
        ("swin", "runs/swin/last.safetensors", "--protocol", "1x1"),
        ("packed", "runs/cohort/ema/best.safetensors", "--pack", "packs/val"),
        *((of, TEACHER, "--protocol", "2x3", "--average", of) for of in ("prob", "logit", "feature")),
    ):
        output = ("--data", "data/val", "--output", f"figures/{name}.json")
        yield command("evaluate", {"loader.workers": 1}, checkpoint, *output, *options)


def command(name: str, keys: dict, *options: str) -> list[str]:
    return [name, *options, *(part for key, value in keys.items() for part in ("--set", f"{key}={json.dumps(value)}"))]


def run_chain(checkout: Path, folder: Path) -> None:
    """Run all commands in `folder`. Exits with status 1 once a command of either version has failed."""
    for name in ("logs", "figures"):
        (folder / name).mkdir(parents=True)
    os.chdir(folder)
    commands, failed = list(chain()), folder.parent / "failed"
    for number, arguments in enumerate(commands, 1):
        began, log = (
            time.perf_counter(),
            Path(f"logs/{number}-plan.txt" if "--dry-run" in arguments else f"logs/{number}.txt"),
        )
        process = Process(target=run_command, args=(checkout, arguments, log))
        process.start()
        process.join()
        said = f"{folder.name} {number}/{len(commands)} {time.perf_counter() - began:5.1f} s  {shlex.join(arguments)}"
        print(said[:120], flush=True)
        if process.exitcode:
            failed.touch()
            print(
                f"{log.read_text()}\n{checkout}: exit status {process.exitcode} of pipeline.py {shlex.join(arguments)}"
            )
        if failed.exists():
            raise SystemExit(1)


def run_command(checkout: Path, arguments: list[str], log: Path) -> None:
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv, sys.path[0] = ["pipeline.py", *arguments], str(checkout)
    runpy.run_path(str(checkout / "pipeline.py"), run_name="__main__")


# ---- the comparison ----

RENAMED = {"paid": "teacher_time", "ledger": "cost"}  # the old version's keys -> the new version's
# Not compared: keys of times; bytes of files that hold times (total, metadata); messages (reason).
LEFT_OUT = re.compile(r"(^|_)(seconds|hours|ms|rate)$|_per_s$|^paid_ledgers$|^(total|metadata|reason)$")
JSON = re.compile(r"(zarr|index|pack|result|sweep|passes|test)\.json|(metrics|quarantine|report)\.jsonl")


def read(file: Path) -> tuple[str | None, Any]:
    """The kind of a file (None: it is not compared), and what is compared of it."""
    top, name = file.parts[0], file.name
    if name.endswith("-plan.txt"):  # of the printed tables, the rows that hold a number
        rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in file.read_text().splitlines()]
        return "table of --dry-run", [row for row in rows if len(row) > 1 and any(cell[:1].isdigit() for cell in row)]
    if JSON.fullmatch(name) or (top == "figures" and file.suffix == ".json"):
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        return name if top != "figures" else "*.json", [compared(json.loads(line)) for line in lines]
    if file.suffix == ".safetensors":
        return "tensors", tensors(file.read_bytes())
    chunk = top == "caches" and not name.startswith(".")
    if chunk or file.suffix in (".tar", ".csv") or name.endswith(".rows.json"):
        return "chunk files" if chunk else re.sub(r"^\w+", "*", name), hashlib.sha256(file.read_bytes()).hexdigest()
    return None, None


def compared(value: Any) -> Any:
    """JSON with the new names, and without what is not compared."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): compared(part) for key, part in value.items() if not LEFT_OUT.search(key)}
    return [compared(part) for part in value] if isinstance(value, list) else value


def tensors(data: bytes) -> dict[str, list]:
    """name -> dtype, shape and sha256 of each tensor of a .safetensors."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = {name: of for name, of in json.loads(data[8:start]).items() if name != "__metadata__"}
    parts = {name: data[start + of["data_offsets"][0] : start + of["data_offsets"][1]] for name, of in header.items()}
    return {name: [of["dtype"], of["shape"], hashlib.sha256(parts[name]).hexdigest()] for name, of in header.items()}


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
    things, others = defaultdict(list), Counter()
    for file in sorted({path.relative_to(side) for side in (old, new) for path in side.rglob("*") if path.is_file()}):
        sides = []
        for side in (old, new):
            os.chdir(side)
            sides.append(read(file) if file.exists() else (None, "no such file"))
        if kind := sides[0][0] or sides[1][0]:
            folder = "/".join(file.parts[:-1][:2])
            things[folder, kind].append(difference(sides[0][1], sides[1][1], str(file)))
        else:
            others[re.sub(r"\d+|^.*(?=\.png$|\.lock$)", "*", file.name)] += 1
    for (folder, kind), found in sorted(things.items()):
        first = next(filter(None, found), None)
        print(f"{folder:16} {kind:20} {len(found):4} files  {'equal' if first is None else f'DIFFERENT {first}'}")
    print("not compared:", ", ".join(f"{count} {name}" for name, count in sorted(others.items())))
    return not any(filter(None, (first for found in things.values() for first in found)))


def main(old: str, new: str = ".") -> int:
    root, checkouts = Path(tempfile.mkdtemp(prefix="versions-")), (Path(old).resolve(), Path(new).resolve())
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", COLUMNS="160", TERM="dumb")
    make_videos(root / "videos")
    for library in LIBRARIES:
        importlib.import_module(library)
    sides = [Process(target=run_chain, args=pair) for pair in zip(checkouts, (root / "old", root / "new"), strict=True)]
    for side in sides:
        side.start()
    for side in sides:
        side.join()
    if any(side.exitcode for side in sides) or not compare(root / "old", root / "new"):
        print(f"not equal, or a command failed; all files are kept in {root}")
        return 1
    shutil.rmtree(root)
    print("all equal")
    return 0


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(__doc__)
    raise SystemExit(main(*sys.argv[1:]))
