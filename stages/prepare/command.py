"""The command `prepare`."""

import click

from stages.config.options import CONFIG, DRY_RUN, SET, LocalPath, json_option, with_options


@click.command(short_help="Make a data set of videos: tar shards and an index.")
@click.argument("source", required=False)
@click.option("--output", help="The folder of the data set, or its URL (s3://, gs://, az://).")
@click.option("--annotations", help="The published file of a NAME; for a folder of videos a CSV path,label[,label...].")
@click.option("--videos", help="The folder of a NAME's videos, or of its folders of frames.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Which split, if the file holds several.")
@click.option(
    "--class-order",
    "--classes",
    "classes",
    help="A file with one name per line, numbered or not, or {name: number}; a prepared data set; or a teacher.",
)
@click.option("--disjoint-from", multiple=True, metavar="DATASET", help="Report clips that this data set has too.")
@click.option(
    "--limit", type=click.IntRange(1), help="Take this many clips, from all over the source; always the same."
)
@click.option(
    "--check",
    type=click.Choice(["quick", "full"]),
    help="quick: decode some frames of each video. full: decode every frame; only this finds all damage.  [default: full "
    "if that takes at most 10 minutes]",
)
@click.option(
    "--recheck",
    type=LocalPath(),
    metavar="DATASET",
    help="Check a finished data set again, by this version's rules, and update its index. Only --check may be added.",
)
@click.option("--clips-per-shard", type=int)
@click.option("--with-offset", is_flag=True, default=None, help="rawframes: lines are `dir start total label...`.")
@click.option("--frame-template", help="rawframes: file names.  [default: img_%05d or image_%05d, .jpg or .png]")
@click.option("--fps", type=float, help="rawframes: frames per second of the encoded clips.  [default: 25]")
@CONFIG
@SET
@DRY_RUN
@json_option
def prepare(config_file, overrides, dry_run, recheck, **options):
    """Make a data set from SOURCE: videos -> tar shards and an index.

    \b
    SOURCE is one of
      a folder of class folders of videos     (the folders' names are the classes)
      a folder of videos                      (unlabelled, or labelled by --annotations)
      a CSV path,label[,label...]             (paths relative to it; an empty label: unlabelled)
      a folder of .tar shards made elsewhere  (only the index is made; the tars stay at their place; a URL, too,
                                               with --output in the same bucket)
    or, with --annotations FILE --videos DIR, the NAME of a published format
      kinetics   CSV label,youtube_id,time_start,time_end; clips already cut, or whole videos
      minik      lines `path num_frames label`
      sthv2      JSON with templates; --class-order something-something-v2-labels.json
      actnet     activity_net.v1-3.min.json with --split, or lines `path,num_frames,label[,label...]`
      fcvid      lines `path,num_frames,label[,label...]`
      mmaction   lines `file label [label...]`, or its JSON
      rawframes  lines `dir total label [label...]`: folders of frames, which are encoded

    Videos are copied byte by byte. OUTPUT/quarantine.jsonl lists what is unreadable, absent or not listed.
    OUTPUT/report.jsonl lists what is in the data set, but odd: clips that are in it twice, or also in the data set of
    --class-order or --disjoint-from. A rerun resumes. With --annotations a NAME always means the format, even if a
    folder has this name.
    """
    from stages.config.file import load_config
    from stages.prepare.config import PrepareConfig
    from stages.prepare.prepare import prepare
    from stages.prepare.recheck import recheck as check_again
    from stages.prepare.result import data_set_result

    if recheck is not None:
        given = [name for name, value in options.items() if value not in (None, (), False) and name != "check"]
        if given or dry_run or config_file or overrides:
            raise click.UsageError("--recheck takes no other option than --check")
        return {"data": str(recheck), "changed": check_again(recheck, check=options["check"])}
    options["disjoint_from"] = list(options["disjoint_from"]) or None
    config = load_config(PrepareConfig, config_file, with_options(options, overrides))
    data = prepare(**dict(config), dry_run=dry_run)
    return None if data is None else data_set_result(data)
