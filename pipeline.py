#!/usr/bin/env python
"""reskd: train low-resolution video students against a high-resolution teacher that runs once."""

from pathlib import Path

import click

CONFIG = click.option("--config", "config_file", type=click.Path(path_type=Path), help="A YAML file; see configs/.")
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as optim.lr=0.1."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, do nothing.")


class Pipeline(click.Group):
    """Commands in the order of the work; an error the user can mend is a message, not a traceback."""

    def list_commands(self, ctx):
        return ["demo", "models", "prepare", "import-checkpoint", "cache-teacher", "inspect-cache", "verify-cache",
                "pack", "train-student", "sweep", "evaluate", "bench"]  # fmt: skip

    def invoke(self, ctx):
        from cache.errors import ReskdError

        try:
            return super().invoke(ctx)
        except ReskdError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Pipeline, context_settings={"help_option_names": ["-h", "--help"]})
def cli():
    """Cross-resolution knowledge distillation for video, offline: the teacher is paid for once.

    \b
    prepare            videos, annotations -> WebDataset shards and an index
    train-student      shards              -> a teacher (high resolution, no cache)
    import-checkpoint  a published one     -> a teacher
    cache-teacher      shards, teacher     -> a Zarr cache of soft targets and features
    inspect-cache      cache               -> what is in it, what it takes, what a clip's views show
    verify-cache       cache               -> whether it is whole; what to redo where it isn't
    pack               shards, cache       -> their frames as small JPEGs, so that students decode no video
    train-student      shards, cache       -> any number of low-resolution students
    sweep              shards, cache       -> a whole grid of them, their Pareto front, what the teacher cost
    evaluate           checkpoint, shards  -> accuracy, without the teacher

    Begin with `pipeline.py demo`: all of it on a small real data set, in minutes.
    """


@cli.command()
@click.option("--model", type=click.Choice(["tsm", "tsn", "slowonly", "swin"]), help="Of all nets.  [default: tsm]")
@click.option("--output", help="Everything goes there.  [default: runs/demo, or runs/demo-MODEL]")
@click.option(
    "--seeds", type=click.IntRange(1), help="Students of each kind; 3 gives a mean and a spread.  [default: 1]"
)
@click.option(
    "--unlabelled", is_flag=True, help="Students have the labels of a quarter of the clips: what do the others bring?"
)
@CONFIG
@SET
def demo(model, output, seeds, unlabelled, config_file, overrides):
    """Make a small data set and take it through every stage.

    Moving handwritten digits, encoded as H.264: a teacher is trained at high resolution and cached once; one student
    learns from labels alone, one from the cache. Writes summary.json, curves.png, views.png; a rerun resumes.
    """
    from stages.config.file import load_config
    from stages.config.schema import DemoConfig
    from stages.demo.demo import run_demo

    if not output and (model or unlabelled):
        output = "-".join(["runs/demo", *([model] if model else []), *(["unlabelled"] if unlabelled else [])])
    options = {"model": model, "output": output, "seeds": seeds, "unlabelled": unlabelled or None}
    run_demo(load_config(DemoConfig, config_file or DEMO, _with_options(options, overrides)))


DEMO = Path(__file__).parent / "configs" / "demo" / "demo.yaml"


@cli.command()
@click.option("--size", "sizes", type=int, multiple=True, default=(224, 112), show_default=True, help="px; repeatable.")
def models(sizes):
    """List the networks of the zoo: parameters, GFLOPs a view and a video, feature maps."""
    from stages.models.list_models import list_models

    list_models(sizes)


@cli.command()
@click.argument("source", required=False)
@click.option("--output", help="The data set's folder.")
@click.option("--annotations", help="As published, of a NAME; a CSV path,label[,label...] for a folder of videos.")
@click.option("--videos", help="The folder of a NAME's videos, or of its folders of frames.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of annotations that hold several.")
@click.option(
    "--class-order",
    "--classes",
    "classes",
    help="A file of one name a line, numbered or not, or {name: number}; a prepared data set; or a teacher.",
)
@click.option("--disjoint-from", multiple=True, metavar="DATASET", help="Report clips that are in that one too.")
@click.option("--limit", type=click.IntRange(1), help="So many clips, the same ones each time, spread over the source.")
@click.option("--clips-per-shard", type=int)
@click.option("--with-offset", is_flag=True, default=None, help="rawframes: lines are `dir start total label...`.")
@click.option("--frame-template", help="rawframes: the files' names.  [default: img_%05d or image_%05d, .jpg or .png]")
@click.option("--fps", type=float, help="rawframes: frames a second of the encoded clips.  [default: 25]")
@CONFIG
@SET
@DRY_RUN
def prepare(config_file, overrides, dry_run, **options):
    """Make a data set from SOURCE: videos -> tar shards and an index.

    \b
    SOURCE is one of
      a folder of class folders of videos     (the folders' names are the classes)
      a folder of videos                      (unlabelled, or labelled by --annotations)
      a CSV path,label[,label...]             (paths relative to it; an empty label: unlabelled)
      a folder of .tar shards made elsewhere  (only the index is made; the tars stay where they are)
    or, with --annotations FILE --videos DIR, the NAME of a published format
      kinetics   CSV label,youtube_id,time_start,time_end; clips already cut, or whole videos
      minik      lines `path num_frames label`
      sthv2      JSON with templates; --class-order something-something-v2-labels.json
      actnet     activity_net.v1-3.min.json with --split, or lines `path,num_frames,label[,label...]`
      fcvid      lines `path,num_frames,label[,label...]`
      mmaction   lines `file label [label...]`, or its JSON
      rawframes  lines `dir total label [label...]`: folders of frames, which are encoded

    Videos are copied byte by byte. OUTPUT/quarantine.jsonl lists what is unreadable, absent or not listed,
    OUTPUT/report.jsonl what is in the data set, and odd: clips that are in it twice, or in the data set of
    --class-order or --disjoint-from too. A rerun resumes. A NAME means the format wherever --annotations is given,
    even where a folder is called so.
    """
    from stages.config.file import load_config
    from stages.config.schema import PrepareConfig
    from stages.prepare.prepare import prepare

    options["disjoint_from"] = list(options["disjoint_from"]) or None
    prepare(**dict(load_config(PrepareConfig, config_file, _with_options(options, overrides))), dry_run=dry_run)


@cli.command("import-checkpoint")
@click.argument("source", metavar="IN", required=False)
@click.argument("output", metavar="OUT.safetensors", required=False)
@click.option("--model", metavar="NAME", help="A network of `pipeline.py models`; anything else by --set model.KEY=.")
@click.option("--class-order", "classes", help="Its classes: a file of one name a line, or a prepared data set.")
@click.option("--size", type=int, help="px of its input.  [default: 224]")
@click.option(
    "--format", type=click.Choice(["auto", "mmaction2", "rkd", "torchvision", "timm"]), help="[default: by its keys]"
)
@click.option("--part", type=click.Choice(["student", "teacher"]), help="Of the seed's rkd containers.")
@click.option("--head", type=click.Choice(["keep", "reinit", "drop"]), help="The classifier.  [default: keep]")
@CONFIG
@SET
def import_checkpoint(config_file, overrides, model, **options):
    """Make a checkpoint of mmaction2, the seed, torchvision or timm one of ours.

    Strict: every missing, unexpected or mis-shaped weight is listed. A 2D net's weights are inflated where the model
    is 3D. Files are read as plain tensors: one that holds code is refused. --head reinit replaces a classifier of other
    classes by a fresh one, drop any.
    """
    from stages.config.file import load_config
    from stages.config.schema import ImportConfig
    from stages.import_checkpoint.import_checkpoint import import_checkpoint
    from stages.models.zoo import named_model

    if model:
        options["model"] = named_model(model).model_dump(mode="json", exclude={"num_classes"})
    import_checkpoint(load_config(ImportConfig, config_file, _with_options(options, overrides)))


@cli.command("cache-teacher")
@CONFIG
@SET
@click.option("--views", type=int, help="V, stored views of every clip; can be raised later.")
@click.option("--verify", type=click.IntRange(1), default=None, help="Recompute so many random clip·views and compare.")
@click.option("--strict", is_flag=True, help="Stop at the first unreadable clip instead of quarantining it.")
@click.option("--budget", metavar="SIZE", help="With --dry-run: which encodings fit, such as 200GB, 1.5TB, 64GiB.")
@click.option("--student-grid", "grid", metavar="HxW", help="With --dry-run: price this grid of a student's map, too.")
@click.option(
    "--probe", type=click.IntRange(0), help="With --dry-run: clip·views that are measured, 0 none.  [default: 32]"
)
@DRY_RUN
def cache_teacher(config_file, overrides, views, verify, strict, dry_run, **planned):
    """Stage one: run the teacher once over V views of every clip.

    Killed and run again, it redoes only what was not committed. A rerun with another teacher, policy, decoder or
    shard list is refused; a rerun with more --views adds to the cache in place. Several processes (torchrun) share
    the shards.

    --dry-run is the size planner: from a short probe of the teacher on real clips, the hours it needs, and for each way
    of storing feature maps the bytes of a clip·view and of the whole cache, what it keeps, and how to --set it. Where
    nothing fits into --budget, it says what the smallest takes.
    """
    from stages.config.file import load_config
    from stages.config.schema import CacheConfig
    from stages.teacher.cache_teacher import cache_teacher

    config = load_config(CacheConfig, config_file, _with_options({"views": views}, overrides))
    cache_teacher(config, strict=strict, dry_run=dry_run, verify=verify or 0, **planned)


@cli.command("inspect-cache")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="The data set that it was made of: the teacher's accuracy."
)
@click.option("--clip", metavar="KEY", help="Views and top-5 of this clip; SHARD/KEY where two shards have the key.")
@click.option("--png", type=click.Path(path_type=Path), help="With --clip and --data: a picture of the clip's views.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="All figures in this file, too.")
def inspect_cache(path, **options):
    """Show what the cache in PATH is, and what it takes.

    Teacher, decoder, view policy and targets (what it may not be mixed with); views planned and finished; bytes on disk
    by array and for each clip·view; the encoding's error on clips that it wasn't fitted to; clips in quarantine. With
    --data, the teacher's top-1 on its stored views, as a student will see them.

    \b
    pipeline.py inspect-cache runs/demo/cache.zarr
    pipeline.py inspect-cache runs/demo/cache.zarr --data runs/demo/data/train --clip KEY --png clip.png
    """
    from stages.teacher.inspect_cache import inspect_cache

    inspect_cache(path, **options)


@cli.command("verify-cache")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Hold its keys and frames against this data set.")
@click.option("--recompute", type=click.IntRange(1), help="Let the teacher answer so many random clip·views again.")
@click.option("--teacher", type=click.Path(path_type=Path), help="Its checkpoint, for --recompute.")
@click.option("--repair", "mend", is_flag=True, help="Delete damaged groups and stray files, and nothing else.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="cache-teacher's: names data and teacher."
)
@SET
def verify_cache(path, recompute, config_file, overrides, **options):
    """Check every byte of the cache in PATH; exit status 0: it is whole, 1: it is not.

    Each shard's group against the manifest and its own list of files (size, sha256), the arrays' metadata, the keys, and
    whether every clip's targets are there and finite. Prints what is wrong, and a plan: which shards to redo, because
    of what.

    --repair deletes the groups of damaged shards, and the manifest calls the cache unfinished until cache-teacher, run
    again with the config that made it, has redone them; whole shards stay as they are, byte for byte. (The exit status
    is 1 then, too.) A manifest or data set that doesn't fit is reported, never repaired.
    """
    from stages.config.file import load_config
    from stages.config.schema import CacheConfig
    from stages.teacher.verify_cache import verify_cache

    config = load_config(CacheConfig, config_file, overrides) if config_file or overrides else None
    if verify_cache(path, recompute=recompute or 0, config=config, **options)["problems"]:
        raise SystemExit(1)


@cli.command()
@click.option("--data", help="A data set made by prepare.")
@click.option("--output", help="The pack, a folder.")
@click.option("--cache", help="Made by cache-teacher: its stored views.")
@click.option("--frames", type=click.Choice(["views", "all", "crops"]), help="See above.  [default: views]")
@click.option("--size", type=int, help="px of the largest student: decides the height; of crops.  [default: 112]")
@click.option("--height", type=int, help="px of a frame's shorter side.  [default: no crop is enlarged]")
@click.option("--quality", type=int, help="Of the JPEGs, 1 to 95.  [default: 90]")
@click.option("--psnr", type=float, help="dB: the lowest quality that has it on a sample, instead of --quality.")
@CONFIG
@SET
@DRY_RUN
def pack(config_file, overrides, dry_run, **options):
    """Stage 1b: store the frames that students need as small JPEGs beside the shards.

    train-student reads them with data.pack (and data.val_pack), evaluate with --pack, in place of the videos.

    \b
    --frames views  the frames that the stored views of --cache need, for students of several sizes
    --frames crops  these views themselves, cut out and shrunk to --size: the fastest, for students of one size
    --frames all    every frame: for validation, evaluation and fresh views, too

    Killed and run again, it goes on with the shards that are missing. Several processes (torchrun) share them.
    """
    from stages.config.file import load_config
    from stages.config.schema import PackConfig
    from stages.packs.pack import pack

    pack(load_config(PackConfig, config_file, _with_options(options, overrides)), dry_run=dry_run)


@cli.command("train-student")
@CONFIG
@SET
@click.option("--resume", is_flag=True, help="Go on from OUTPUT/last.pt, exactly.")
@click.option("--overwrite", is_flag=True, help="Replace the run in OUTPUT.")
@click.option("--allow-partial", is_flag=True, help="Train on the finished shards of an unfinished cache.")
@DRY_RUN
def train_student(config_file, overrides, resume, overwrite, allow_partial, dry_run):
    """Stage two: train a student from the cache; without data.cache, a teacher or a baseline.

    With a mapping `students` in the config, all of them on one stream, decoded and joined once: each has its own keys
    over the config's (model, size, losses, seed, ...), and is what it would be alone.

    \b
    students:
      r18: {model: {backbone: resnet18}}
      r34-96: {model.backbone: resnet34, size: 96}

    Several processes: torchrun --nproc-per-node N pipeline.py train-student ...
    """
    from stages.config.file import load_cohort
    from stages.student.train_student import train_cohort

    students = load_cohort(config_file, overrides)
    train_cohort(students, resume=resume, overwrite=overwrite, allow_partial=allow_partial, dry_run=dry_run)


@cli.command()
@click.argument("checkpoint", required=False)
@click.option("--data", help="A data set made by prepare.")
@click.option("--output", help="NAME.json for the metrics; NAME.classes.csv and NAME.confusion.png go beside it.")
@click.option("--pack", help="Made by pack of that data set, with --frames all: it is read instead of the videos.")
@click.option("--size", type=int, help="px; the size it was trained at if not given.")
@click.option("--protocol", metavar="CxP", help="C clips in time by 1 or 3 crops: 1x1, 2x3, 4x3, 10x3.  [default: 1x1]")
@click.option(
    "--average", type=click.Choice(["prob", "logit", "feature"]), help="Over a video's views.  [default: prob]"
)
@CONFIG
@SET
def evaluate(config_file, overrides, **options):
    """Score a CHECKPOINT (.safetensors): top-1, top-5, mean class accuracy, mAP; each class; what is taken for what.

    Several processes: torchrun --nproc-per-node N pipeline.py evaluate ... The numbers are those of one.
    """
    from stages.config.file import load_config
    from stages.config.schema import EvaluateConfig
    from stages.evaluate.evaluate import evaluate

    evaluate(load_config(EvaluateConfig, config_file, _with_options(options, overrides)))


@cli.command()
@CONFIG
@SET
@click.option("--grid", multiple=True, metavar="KEY=V1,V2", help="Every value, with all of the others; repeatable.")
@click.option("--at-once", type=click.IntRange(1), default=8, show_default=True, help="Students on one stream: memory.")
@click.option("--test", type=click.Path(path_type=Path), help="Score the last weights on this data set.")
@DRY_RUN
def sweep(config_file, overrides, grid, at_once, test, dry_run):
    """Train many students against one cache: every point of a grid, as few decoded streams as they fit into.

    The config is train-student's, with `students` (names -> keys), or `grid` (keys -> lists), or both. Students that
    agree on data, views and batches are trained together; those that don't, one cohort after another. Writes, into
    OUTPUT, a folder for each, sweep.json, and sweep.png: accuracy over GFLOPs with its Pareto front. Prints what the
    teacher cost, and what it would have in the loop. A rerun goes on, and takes more students.

    \b
    pipeline.py sweep --config configs/own/sweep.yaml
    pipeline.py sweep --config configs/demo/tsm/distilled.yaml --set output=runs/sweep --grid size=16,24 --grid seed=0,1

    Several processes train each cohort together: torchrun --nproc-per-node N pipeline.py sweep ...
    """
    from stages.config.file import load_sweep
    from stages.sweep.sweep import run_sweep

    run_sweep(load_sweep(config_file, overrides, grid), at_once=at_once, test=test, dry_run=dry_run)


@cli.group()
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
    from stages.bench.fidelity import run_fidelity
    from stages.config.file import load_config
    from stages.config.schema import StudyConfig

    options = {"seeds": seeds, "quick": quick or None}
    run_fidelity(load_config(StudyConfig, config_file or STUDY, _with_options(options, overrides)), output)


STUDY = Path(__file__).parent / "configs" / "study" / "study.yaml"


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


def _with_options(options: dict, overrides: tuple) -> list[str]:
    """Options that were given, as overrides; --set comes last and wins."""
    import json  # JSON is YAML: a path keeps its blanks, colons, and hashes

    return [f"{name}={json.dumps(value)}" for name, value in options.items() if value is not None] + list(overrides)


if __name__ == "__main__":
    cli()
