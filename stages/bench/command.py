"""The group `bench`: one command for each benchmark."""

from pathlib import Path

import click

from stages.config.options import CONFIG, JSON, SET, LocalPath, with_options


@click.group()
def bench():
    """Benchmarks of accuracy and speed.

    They measure how accurate students are with each encoding, and how fast each stage is against its bound. A figure is the
    median of several runs, with its spread and its goal. stages/bench/README.md has results.
    """


QUICK = click.option("--quick", is_flag=True, help="Measure less, in less time.")
PROFILE = click.option("--profile", "trace", type=LocalPath(), metavar="TRACE",
                       help="Run once more with torch.profiler and write a JSON file for chrome://tracing.")  # fmt: skip
MADE = click.option("--folder", type=LocalPath(), default=Path("runs/bench"), show_default=True,
                    help="Folder for the videos. They are made once.")  # fmt: skip


def MEASURED(command):
    """The options of the benches that make videos."""
    return QUICK(JSON(PROFILE(MADE(command))))


@bench.command()
@click.option("--seeds", type=click.IntRange(1), help="Students for each way to train.  [default: 3]")
@QUICK
@JSON
@CONFIG
@SET
def fidelity(config_file, overrides, seeds, quick, json_file):
    """Accuracy with labels, with a teacher in the loop, and with caches.

    The same student is trained in each of these ways:

    \b
    1. labels only
    2. the teacher in the loop, on fresh views (as upstream does): logits, features, both
    3. replay of 1, 2, 4, 8 stored views; the target of one centre view, as in a naive cache
    4. with the fewest views that are as good as 2.: int8, int4, int3, bases of 1/2 to 1/16 of the channels,
       the student's grid, packs in place of videos
    5. a teacher of another width, with a projector; schedules of 1/2, 2 and 4 times the epochs

    The table shows for each: top-1 on unseen handwriting, bytes of a view, the difference to the teacher in the loop (seed
    by seed), and the steps until it is as good as labels only are at their end. --quick has few encodings and leaves 5. out.
    After an interruption run the same command again.
    """
    from stages.bench.config import StudyConfig
    from stages.bench.fidelity import run_fidelity
    from stages.config.file import load_config

    options = {"seeds": seeds, "quick": quick or None}
    run_fidelity(load_config(StudyConfig, config_file or STUDY, with_options(options, overrides)), json_file)


STUDY = Path(__file__).parents[2] / "configs" / "study" / "study.yaml"
REAL = Path(__file__).parents[2] / "configs" / "real" / "real.yaml"


@bench.command()
@click.option("--videos", help="The folder of the videos.")
@click.option("--list", "clips", metavar="CSV", help="path,label,source,split1[,split2,...]; a split is train or test.")
@click.option("--output", help="Folder for all files.  [default: runs/real]")
@click.option("--core-hours", type=float, help="The budget. Parts that don't fit are left out.  [default: 30]")
@QUICK
@JSON
@CONFIG
@SET
def real(config_file, overrides, quick, json_file, **options):
    """Accuracy on real video, with nets that were trained on ImageNet.

    The teacher is EfficientNet-Lite2 at 224 px, the student EfficientNet-Lite0 at 80 px, both over 4 frames. They take the
    mean over frames, so they don't see motion.

    \b
    1. length 1: how many epochs labels alone need, and what frozen nets know of the clips
    2. screening: upstream's recipe, each part of ours, and teachers that haven't memorised the clips
    3. the claim: labels, upstream's recipe and the best one, on every split, at one and three lengths
    4. what it hangs on: sizes, a tenth of the labels, stored views, encodings

    Choices are made on sources that are held out of the first split's train side. Sources are videos whose clips are alike:
    none is on both sides. The budget is printed with its parts first. After an interruption run the same command again.
    --quick trains a few nets on five classes, at small sizes, to see that all works.
    """
    from stages.bench.real.config import QUICK_STUDY, RealConfig
    from stages.bench.real.study import run_real
    from stages.config.file import load_config

    changes = [*(QUICK_STUDY if quick else ()), *with_options(options, overrides)]
    run_real(load_config(RealConfig, config_file or REAL, changes), json_file)


@bench.command()
@click.option(
    "--videos",
    type=LocalPath(exists=True),
    required=True,
    help="A folder of videos, or a prepared data set.",
)
@click.option(
    "--teacher",
    type=LocalPath(),
    help="A .safetensors checkpoint.  [default: EfficientNet-Lite0 of ImageNet]",
)
@click.option("--views", type=click.IntRange(1), default=8, show_default=True, help="Views of each video.")
@click.option("--student-grid", metavar="HxW", default="4x4", show_default=True, help="Grid of the student's map.")
@JSON
def encodings(videos, teacher, views, student_grid, json_file):
    """Bytes and errors of encodings, on your videos.

    The bytes are those of a view. The error is the energy that an encoding loses on held-out videos.
    """
    from stages.bench.encodings import run_encodings
    from stages.teacher.size_planner import parse_grid

    run_encodings(videos, teacher, views, parse_grid(student_grid), json_file)


@bench.command()
@QUICK
@JSON
def join(quick, json_file):
    """Time to read and to write a cache, on one core.

    Measured are joining, opening and memory (for students), and encoding (in stage one).
    """
    from stages.bench.join import run_join

    run_join(quick, json_file)


@bench.command()
@MEASURED
def decode(quick, json_file, trace, folder):
    """Time to decode and to render videos, on one core.

    Measured are 1 view and 8 views of 340x256 and 1280x720 videos.
    """
    from stages.bench.decode import run_decode

    run_decode(quick, json_file, trace, folder)


@bench.command()
@click.option("--answers", type=click.Choice(["max"]), help="max: a stand-in for the teacher answers at once.")
@MEASURED
def stage1(quick, json_file, trace, folder, answers):
    """Speed of stage one against its bound.

    The bound is decoding alone and the teacher alone. Time and memory are measured for more and more clips too.

    With --answers max, everything but the forward is measured, for a core: to encode and write, and to decode and render.
    From that follows how many cores keep a rank of a GPU busy.
    """
    from stages.bench.stage1 import run_stage1

    run_stage1(quick, json_file, trace, folder, answers == "max")


@bench.command()
@MEASURED
def stage2(quick, json_file, trace, folder):
    """Time that distillation adds to plain training.

    Training from a pack is measured against the student's step alone too.
    """
    from stages.bench.stage2 import run_stage2

    run_stage2(quick, json_file, trace, folder)


@bench.command("pack")
@MEASURED
def bench_pack(quick, json_file, trace, folder):
    """Time and bytes of a pack against its videos."""
    from stages.bench.packing import run_pack

    run_pack(quick, json_file, trace, folder)


@bench.command()
@MEASURED
def cohort(quick, json_file, trace, folder):
    """Eight students on one stream against eight runs.

    The bound is one input and eight steps.
    """
    from stages.bench.cohort import run_cohort

    run_cohort(quick, json_file, trace, folder)


@bench.command("sweep")
@MEASURED
def bench_sweep(quick, json_file, trace, folder):
    """A whole sweep against the teacher in the loop.

    The sweep is stage one, a pack, and a cohort of 5 students that train for 20 epochs.
    """
    from stages.bench.sweeping import run_sweeping

    run_sweeping(quick, json_file, trace, folder)


@bench.command()
@MEASURED
def growth(quick, json_file, trace, folder):
    """Time and memory for more and more clips.

    The time per clip of each stage and a student's memory should not grow. A plot shows the times.
    """
    from stages.bench.growth import run_growth

    run_growth(quick, json_file, trace, folder)


@bench.command()
@JSON
@MADE
def fullsize(json_file, folder):
    """The cost on Kinetics-400, from measured parts.

    A ResNet-152 at 224 px teaches students of ResNet-50 at 112 px.
    """
    from stages.bench.fullsize import run_fullsize

    run_fullsize(json_file, folder)


@bench.command()
@QUICK
@JSON
@MADE
def deploy(quick, json_file, folder):
    """What a clip costs in teacher and student, by size and runtime.

    \b
    nets       TSN-R152 at 224 px, TSN-R50 at 224, 112 and 72 px; random weights
    runtimes   torch, onnxruntime, onnxruntime int8; on one core and on all
    goal       the latency falls by at least 0.8 of the ratio of GFLOPs

    The time to decode and render a clip is measured beside. Needs the extra `export`:

    \b
    uv run --extra export pipeline.py bench deploy --quick
    """
    from stages.bench.deploy import run_deploy

    run_deploy(quick, json_file, folder)


@bench.command()
@QUICK
@JSON
def faults(quick, json_file):
    """What is left after kills, full disks, damage and other faults.

    \b
    Small real stages are
      killed at random instants and at every rename, stopped by signals
      run on a full disk, a read-only one, one that vanishes; twice at once; with 256 open files; with a clock set back
      robbed of a decoding process
    and one bit is flipped in each kind of file. It is right if a rerun ends, bit for bit, in what an undisturbed run
    makes, and if damage is an error that names the file and says what mends it.

    A full disk needs the right to mount (unshare), the clock needs libfaketime. Without them they are skipped.
    """
    from stages.bench.faults.faults import run_faults

    run_faults(quick, json_file)


@bench.command()
@QUICK
@JSON
@MADE
def remote(quick, json_file, folder):
    """Training from an object store against training from local files.

    \b
    store      a real S3 server on loopback, 20 ms away
    waiting    the share of time in which a step waits for clips, in the first epoch and in later ones
    fetching   bytes against the simulated optimum and LRU, with little room; requests for a block
    joining    a clip from a block that is here, against a local tar
    stage one  from the store into the store, against local folders

    Needs the extra `remote` and the server:

    \b
    uv run --extra remote --group integration pipeline.py bench remote --quick
    """
    from stages.bench.remote import run_remote

    run_remote(quick, json_file, folder)


@bench.command()
@QUICK
@JSON
def metadata(quick, json_file):
    """What 10 million clips in 10,000 shards cost beside their clips.

    The metadata are made synthetically. Measured are: to open the data set and its cache, to order an epoch, the memory of a
    worker, and the end of stage one in a store (a real S3 server on this machine). --quick has 500 shards.

    \b
    uv run --extra remote --group integration pipeline.py bench metadata --quick
    """
    from stages.bench.metadata import run_metadata

    run_metadata(quick, json_file)


@bench.command("bad-videos")
@click.option("--videos", type=LocalPath(exists=True, file_okay=False),
              help="Make the mutants of all files in this folder.  [default: of the made kinds]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Number of the first mutant. Other numbers make other mutants.")  # fmt: skip
@QUICK
@JSON
def bad_videos(videos, seed, quick, json_file):
    """Odd, damaged and hostile videos: served right, or refused.

    \b
    Made are
      68 kinds, in every container that can hold them
      thousands of mutants: bits flipped, cuts, elements swapped or repeated, sizes and tables that lie
      bombs: small files that claim to be huge
    Each is probed and decoded in a process with limits. Random sets of frames are compared with one sequential decode.
    """
    from stages.bench.bad_videos.bad_videos import run_bad_videos

    run_bad_videos(quick, json_file, videos, seed)


@bench.command()
@QUICK
@JSON
@MADE
def engine(quick, json_file, folder):
    """Stage one by actors of Ray against ranks of torchrun, and an actor that is killed half-way.

    Two processes of one thread each. Starts are left out. Needs the extra `ray`:

    \b
    uv run --extra ray pipeline.py bench engine --quick
    """
    from stages.bench.engine import run_engine

    run_engine(quick, json_file, folder)
