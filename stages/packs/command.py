"""The command `pack`."""

import click

from stages.config.options import CONFIG, DRY_RUN, SET, json_option, with_options


@click.command(short_help="Store the pictures that students need as small JPEGs.")
@click.option("--data", help="A data set made by prepare.")
@click.option("--output", help="The pack, a folder or s3://bucket/NAME.")
@click.option("--cache", help="A cache made by cache-teacher, with the stored views.")
@click.option(
    "--frames",
    type=click.Choice(["crops", "all"]),
    help="Which pictures to pack, see above.  [default: crops]",
)
@click.option(
    "--size", type=int, help="px of the largest student: of crops, or of what frames must serve.  [default: 112]"
)
@click.option(
    "--height", type=int, help="px of a whole frame's shorter side.  [default: just enough to enlarge no crop]"
)
@click.option("--quality", type=int, help="JPEG quality, 1 to 95.  [default: 90]")
@click.option(
    "--psnr", type=float, help="dB, instead of --quality: choose the lowest quality with this PSNR on a sample."
)
@CONFIG
@SET
@DRY_RUN
@json_option
def pack(config_file, overrides, dry_run, **options):
    """Stage 1b: store the pictures that students need as small JPEGs.

    train-student (data.pack, data.val_pack) and evaluate (--pack) read them instead of the videos.

    \b
    --frames crops  the stored views of --cache, cut out and shrunk to --size: for students of this size and smaller
    --frames all    every frame, whole: for validation, evaluation and fresh views

    If pack was killed, run it again, on any machine if the pack is at a URL: it packs only the missing shards. Several
    processes (torchrun) share them.
    """
    from stages.config.file import load_config
    from stages.packs.config import PackConfig
    from stages.packs.pack import pack

    return pack(load_config(PackConfig, config_file, with_options(options, overrides)), dry_run=dry_run)
