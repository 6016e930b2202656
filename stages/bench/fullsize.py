"""The full-size case, computed from measured parts: ResNet-152 at 224 px teaches students of ResNet-50 at 112 px on
Kinetics-400.

In core seconds of parts that this machine measures (see `sweeping`), for N clips, n students, e epochs, V stored views:
  in the loop  N n e (d + t + s)        ours  N ((D + V t) + k + e p + n e s)
In multiply-adds of the networks, where a training step counts as three forwards, and T and S are the GMACs:
  in the loop  N n e (T + 3 S)          ours  N (V T + 3 n e S)
Accelerators would share these multiply-adds. Their seconds must be measured on them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from stages.bench.clocks import RUNS
from stages.bench.figures import Figure, show
from stages.bench.parts import forward_ms, input_ms, source_ms, step_ms
from stages.bench.students import DISTILLED, FRAMES, R50, make_bench
from stages.bench.videos import SMALL
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.video_model import model_stats
from stages.runtime.distributed import join_ranks
from stages.shards.dataset import open_dataset
from stages.stream.pack_reader import open_pack

CLIPS, STUDENTS, EPOCHS, VIEWS = 240_436, 5, 100, 8
TEACHER = ModelConfig(arch="tsm", backbone="resnet152", num_frames=FRAMES)
SIZES = 112, 224  # px of a student and of the teacher


def run_fullsize(output: Path | None, folder: Path) -> list[Figure]:
    """Measure the parts with 340x256 clips of GOP 12. The clips are made in `folder` and kept."""
    with tempfile.TemporaryDirectory() as temporary, join_ranks():
        bench = make_bench(Path(temporary), folder, SMALL[0], 8)
        path = bench.packed("crops", SIZES[0])
        data = {"train": bench.data(), "cache": bench.cache(), "pack": path}
        student = bench.student("student", R50, SIZES[0], data=data, losses=DISTILLED)
        pack = open_pack(path).manifest.identity
        part = source_ms(open_dataset(bench.data()), pack.policy, VIEWS, SIZES, pack.quality)
        part |= {"t": forward_ms(TEACHER, SIZES[1], 1), "s": step_ms(student, RUNS), "p": input_ms(student, RUNS)}
    loop = STUDENTS * EPOCHS * (part["d"] + part["t"] + part["s"])
    ours = part["D"] + VIEWS * part["t"] + part["k"] + EPOCHS * part["p"] + STUDENTS * EPOCHS * part["s"]
    t, s = (model_stats(build_model(m.model_copy(update={"num_classes": 400})), size).gmacs
            for m, size in ((TEACHER, SIZES[1]), (R50, SIZES[0])))  # fmt: skip
    loop_macs, our_macs = STUDENTS * EPOCHS * (t + 3 * s), VIEWS * t + 3 * STUDENTS * EPOCHS * s
    decoding = STUDENTS * EPOCHS * part["d"] / (part["D"] + part["k"] + EPOCHS * part["p"])
    hours = CLIPS / 1e3 / 3600
    figures = [
        *(Figure(f"part {name}", value, "ms a clip") for name, value in part.items()),
        Figure("T, the teacher", t, "GMACs a view"),
        Figure("S, a student", s, "GMACs a view"),
        Figure(f"in the loop: {STUDENTS} students of {EPOCHS} epochs, {CLIPS} clips", loop * hours, "core hours"),
        Figure(f"ours, {VIEWS} stored views", ours * hours, "core hours"),
        Figure("in the loop ÷ ours", loop / ours, "times"),
        Figure("of that, decoding and rendering", decoding, "times"),
        Figure("in multiply-adds of the nets", loop_macs / our_macs, "times"),
        Figure("in the loop, nets alone", CLIPS * loop_macs / 1e9, "EMACs"),
        Figure("ours, nets alone", CLIPS * our_macs / 1e9, "EMACs"),
    ]
    show("full size", figures, output)
    return figures
