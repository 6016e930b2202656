"""The group `bench`: a command for each part that is measured."""

from pathlib import Path

import click

from stages.config.options import CONFIG, SET, with_options


@click.group()
def bench():
    """Measure: what encodings cost students, and what each part takes against its bound.

    Each figure is the median of several runs beside its spread and its goal; --json writes them.
    """


JSON = click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures there, as a list.")
QUICK = click.option("--quick", is_flag=True, help="Less of it, in less time.")
PROFILE = click.option("--profile", "trace", type=click.Path(path_type=Path), metavar="TRACE",
                       help="Run it once more under torch.profiler; a JSON for chrome://tracing.")  # fmt: skip
MADE = click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True,
                    help="Where its videos are made, and kept.")  # fmt: skip


def MEASURED(command):
    """What every bench that makes its videos takes."""
    return QUICK(JSON(PROFILE(MADE(command))))


@bench.command()
@click.option("--seeds", type=click.IntRange(1), help="Students of each arm.  [default: 3]")
@QUICK
@JSON
@CONFIG
@SET
def fidelity(config_file, overrides, seeds, quick, output):
    """The study: the same student on labels, on a teacher in the loop, and on caches of every encoding.

    \b
    labels alone; the teacher in the loop on fresh views (the seed's way): logits, features, both
    replay of 1, 2, 4, 8 stored views; a fixed centre view's target, as a naive cache has it
    at the fewest views that match: int8, int4, int3, bases of 1/2 to 1/16 of the channels, the student's grid
    a teacher of another width (an adapter); schedules of 1/2, 2 and 4 times the epochs

    Each arm's top-1 on fresh handwriting beside its bytes, its difference to the teacher in the loop seed by seed, and the
    steps it takes to where labels alone end. A rerun resumes. --quick takes a few of the encodings, and no last line.
    """
    from stages.bench.config import StudyConfig
    from stages.bench.fidelity import run_fidelity
    from stages.config.file import load_config

    options = {"seeds": seeds, "quick": quick or None}
    run_fidelity(load_config(StudyConfig, config_file or STUDY, with_options(options, overrides)), output)


STUDY = Path(__file__).parents[2] / "configs" / "study" / "study.yaml"


@bench.command()
@click.option("--videos", type=click.Path(path_type=Path, exists=True), required=True, help="A folder, or a data set.")
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="A .safetensors.  [default: ImageNet's EfficientNet-Lite0]"
)
@click.option("--views", type=click.IntRange(1), default=8, show_default=True, help="Of each video.")
@click.option("--student-grid", metavar="HxW", default="4x4", show_default=True, help="Of a student's map.")
@JSON
def encodings(videos, teacher, views, student_grid, output):
    """Encodings on real features: bytes of a clip·view, and what they keep on videos left out of the sample."""
    from stages.bench.encodings import run_encodings
    from stages.teacher.size_planner import parse_grid

    run_encodings(videos, teacher, views, parse_grid(student_grid), output)


@bench.command()
@QUICK
@JSON
def join(quick, output):
    """What a cache costs a student's worker (joining, opening, memory) and stage one (encoding), on one core."""
    from stages.bench.join import run_join

    run_join(quick, output)


@bench.command()
@MEASURED
def decode(quick, output, trace, folder):
    """Milliseconds of one core to decode and to render a view, and 8 views at once, of 340x256 and 1280x720 videos."""
    from stages.bench.decode import run_decode

    run_decode(quick, output, trace, folder)


@bench.command()
@MEASURED
def stage1(quick, output, trace, folder):
    """Stage one's rate against its bound (decoding alone, the teacher alone); its memory and pace over more clips."""
    from stages.bench.stage1 import run_stage1

    run_stage1(quick, output, trace, folder)


@bench.command()
@MEASURED
def stage2(quick, output, trace, folder):
    """What distillation adds to a clip of plain training, and training from a pack against the student's step alone."""
    from stages.bench.stage2 import run_stage2

    run_stage2(quick, output, trace, folder)


@bench.command("pack")
@MEASURED
def bench_pack(quick, output, trace, folder):
    """A student's input from a pack against that from its videos, and the pack's bytes against theirs."""
    from stages.bench.packing import run_pack

    run_pack(quick, output, trace, folder)


@bench.command()
@MEASURED
def cohort(quick, output, trace, folder):
    """Eight students on one stream against eight runs, and against the bound: one input and eight steps."""
    from stages.bench.cohort import run_cohort

    run_cohort(quick, output, trace, folder)


@bench.command("sweep")
@MEASURED
def bench_sweep(quick, output, trace, folder):
    """Five students of 20 epochs: the teacher in their loops against stage one, pack and one cohort."""
    from stages.bench.sweeping import run_sweeping

    run_sweeping(quick, output, trace, folder)


@bench.command()
@MEASURED
def growth(quick, output, trace, folder):
    """Time a clip of every stage, and a student's memory, over more and more clips: flat is right. With a plot."""
    from stages.bench.growth import run_growth

    run_growth(quick, output, trace, folder)


@bench.command()
@JSON
@MADE
def fullsize(output, folder):
    """The full-size case, computed from measured parts: ResNet-152 at 224 to ResNet-50 at 112, Kinetics-400."""
    from stages.bench.fullsize import run_fullsize

    run_fullsize(output, folder)
