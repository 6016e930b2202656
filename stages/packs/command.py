"""The command `pack`."""

import click

from stages.config.options import CONFIG, DRY_RUN, SET, with_options


@click.command()
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
    from stages.packs.config import PackConfig
    from stages.packs.pack import pack

    pack(load_config(PackConfig, config_file, with_options(options, overrides)), dry_run=dry_run)
