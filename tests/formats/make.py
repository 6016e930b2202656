"""Write one small thing of every format, with the version of reskd that lies in the folder above `tests`.

    OMP_NUM_THREADS=1 python tests/formats/make.py OUT

The script imports nothing of reskd: it runs the commands, so it runs in a checkout of any version.
OUT/expected.json holds what the same version reads from these files.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline.py"
DIRECTIONS = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0)}  # y, x per frame
CLIPS, FRAMES, SIZE = 8, 5, 32

# Later versions renamed `rel_pos: seed` and `groups: swin_seed`. The student is a Swin on maps smaller than its window:
# its training shows both. In the teacher, a TSM, `rel_pos` has no effect; it stands in the identity of the caches.
TRAINING = """optim: {lr: %s, lr_batch: 4, groups: swin_seed}
batch_size: %s
amp: "off"
log_every: 1
loader: {workers: 0}
"""
POLICY = "policy: {num_frames: 2, crop: multi_scale_crop, scales: [1.0, 0.8], flip: 0.0}\n"
CACHE = (
    POLICY
    + """data: data
teacher: {checkpoint: teacher.safetensors, dtype: float32, batch_size: 2}
views: 2
loader: {workers: 0}
"""
)
STUDENT = (
    TRAINING % (0.04, 2)
    + """size: 8
losses: {feature_mse: 1.0, logit_kl: 1.0, temperature: 2.0}
model: {arch: swin, backbone: swin3d_t, num_frames: 2, dropout: 0.0, rel_pos: seed,
  args: {patch_size: [1, 4, 4], embed_dim: 4, depths: [1, 1], num_heads: [1, 1], window_size: [2, 2, 3]}}
"""
)
PACK = "data: data\ncache: cache.zarr\nsize: 8\nloader: {workers: 0}\n"
CONFIGS = {
    "teacher": TRAINING % (0.05, 4) + POLICY + """size: 32
model: {arch: tsm, backbone: resnet18, num_frames: 2, dropout: 0.0, shift_div: 4, rel_pos: seed,
  args: {channels: [4, 4, 8, 8], layers: [1, 1, 1, 1], stem_type: deep, stem_width: 2, output_stride: 8,
    zero_init_last: false}}
output: teacher
data: {train: data}
schedule: {epochs: 16}
""",
    "cache": CACHE + "output: cache.zarr\ntargets: {logits: uint8, features: {codec: int4}}\n",
    "growing": CACHE + "output: growing.zarr\ntargets: {logits: float16, features: {codec: int8, dims: 4}}\n",
    "student": STUDENT + """output: run
data: {train: data, val: data, cache: cache.zarr}
schedule: {epochs: 3}
checkpoint_every: 5
""",
    "basis_student": STUDENT + "output: basis_student\ndata: {train: data, cache: growing.zarr}\nschedule: {epochs: 1}\n",
    "crops": PACK + "output: crops\nframes: crops\nviews: 1\n",
}  # fmt: skip


def main(out: Path) -> None:
    """Make all of it in the folder `out`, which must be new."""
    out.mkdir(parents=True)
    os.chdir(out)
    for name, text in CONFIGS.items():
        Path(f"{name}.yaml").write_text(text.lstrip())
    for index in range(CLIPS):
        write_clip(index)
    run("prepare", "videos", "--output", "data", "--clips-per-shard", 5)
    run("train-student", "--config", "teacher.yaml")
    shutil.copy("teacher/last.safetensors", "teacher.safetensors")
    run("cache-teacher", "--config", "cache.yaml")
    run("pack", "--config", "crops.yaml")
    until_killed("growing.zarr", one_shard_of_two, "cache-teacher", "--config", "growing.yaml")
    until_killed("run", past_a_checkpoint, "train-student", "--config", "student.yaml")
    Path("expected.json").write_text(json.dumps(expected()) + "\n")
    remove_what_is_not_kept()


def write_clip(index: int) -> None:
    """An H.264 clip of a square that moves over a plain background; the class is its direction."""
    rng = np.random.default_rng(index)
    name, step = list(DIRECTIONS.items())[index % len(DIRECTIONS)]
    frames = np.tile(rng.integers(30, 90, 3).astype(np.uint8), (FRAMES, SIZE, SIZE, 1))
    start, colour = rng.integers(8, 16, 2), rng.integers(150, 255, 3)
    for t in range(FRAMES):
        top, left = start + (t - FRAMES // 2) * np.array(step)
        frames[t, top : top + 8, left : left + 8] = colour
    path = Path("videos") / name / f"{index:02}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        options = {"crf": "45", "preset": "veryfast", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def run(*arguments: object) -> None:
    subprocess.run([sys.executable, str(PIPELINE), *map(str, arguments)], check=True)


def until_killed(output: str, stage: Callable[[], bool | None], *arguments: str) -> None:
    """Kill the command (SIGKILL) once `stage()` is true. Begin anew where `stage()` was None or came too late."""
    for _ in range(20):
        shutil.rmtree(output, ignore_errors=True)
        process = subprocess.Popen([sys.executable, str(PIPELINE), *arguments], start_new_session=True)
        while process.poll() is None and not stage():
            time.sleep(0.0005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if stage():
            return
    raise SystemExit(f"{output}: 20 runs, and none was killed at the right moment")


def one_shard_of_two() -> bool:
    done = [Path(f"growing.zarr/{shard:06}.tar/zarr.json").exists() for shard in range(2)]
    return done == [True, False] and bool(list(Path("growing.zarr").glob(".paid*")))


def past_a_checkpoint() -> bool:
    """In mid-epoch (an epoch has 4 steps), with rows in the log that last.pt, of step 5, doesn't have."""
    return Path("run/last.pt").exists() and len(rows("run", "train")) in (6, 7)


def rows(folder: str, kind: str) -> list[dict]:
    """Rows of metrics.jsonl without what the clock decides."""
    file = Path(folder) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k != "clips_per_s"} for row in found if row["kind"] == kind]


def expected() -> dict:
    """What this version gets from the files, and where the interrupted cache and run end when nobody kills them."""
    run("evaluate", "teacher.safetensors", "--data", "data", "--output", "made/evaluation.json")
    run("inspect-cache", "cache.zarr", "--data", "data", "--json", "made/cache.json")
    run("train-student", "--config", "student.yaml", "--set", "output=made/run")
    run("cache-teacher", "--config", "growing.yaml", "--set", "output=made/growing.zarr")
    basis = ["output=made/basis_student", "data.cache=made/growing.zarr"]
    run("train-student", "--config", "basis_student.yaml", *(part for value in basis for part in ("--set", value)))
    evaluation = json.loads(Path("made/evaluation.json").read_text())
    return {
        "evaluation": {name: evaluation[name] for name in ("top1", "top5", "mean_class", "map", "clips", "gmacs")},
        "teacher_top1_on_cached_views": json.loads(Path("made/cache.json").read_text())["top1"],
        "run": {kind: rows("made/run", kind) for kind in ("train", "val")},
        "basis_student": {"train": rows("made/basis_student", "train")},
    }


def remove_what_is_not_kept() -> None:
    for name in ("videos", "teacher", "made", "run/tensorboard"):
        shutil.rmtree(name)
    for lock in Path().glob(".*.lock"):
        lock.unlink()
    for folder, inside, names in os.walk(".", topdown=False):  # git keeps no empty folder
        if not inside and not names:
            os.rmdir(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
