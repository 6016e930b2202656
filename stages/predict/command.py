"""The command `predict`."""

import click

from stages.config.options import CONFIG, SET, with_options


@click.command(short_help="Recognise what happens in videos.")
@click.argument("checkpoint", required=False)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option("--output", help="A file of JSON lines, one a video; -: standard output.  [default: -]")
@click.option("--csv", help="Also write a CSV table, to this file.")
@click.option(
    "--window", type=float, metavar="SECONDS", help="Cut each video into windows.  [default: one over all of it]"
)
@click.option(
    "--hop", type=float, metavar="SECONDS", help="Time from one window's start to the next's.  [default: the window]"
)
@click.option("--timeline", is_flag=True, default=None, help="Segments in time, instead of one label a video.")
@click.option("--threshold", type=float, help="The least probability of a segment's class.  [default: 0.5]")
@click.option("--least", type=float, metavar="SECONDS", help="The shortest segment.  [default: 0]")
@click.option("--plot", metavar="FOLDER", help="Draw each video's probabilities over time.")
@click.option("--annotate", metavar="OUT.mp4", help="Write the video (one) with its label drawn in, without sound.")
@click.option(
    "--size", type=int, help="Side of the square picture that the net sees, px.  [default: the size of its training]"
)
@click.option("--protocol", metavar="CxP", help="C clips in time by 1 or 3 crops, of each window.  [default: 1x1]")
@click.option(
    "--average",
    type=click.Choice(["prob", "logit", "feature"]),
    help="What is averaged over views and windows.  [default: prob]",
)
@CONFIG
@SET
def predict(config_file, overrides, inputs, **options):
    """Recognise what happens in videos, with a CHECKPOINT (.safetensors).

    INPUT: video files, folders of videos, patterns in quotes, data sets made by prepare, or - for paths on standard
    input, one a line.

    \b
    pipeline.py predict net.safetensors videos/ --output labels.jsonl
    pipeline.py predict net.safetensors 'films/*.mkv' --window 2 --hop 1 --timeline --plot plots
    find . -name '*.mp4' | pipeline.py predict net.safetensors - --csv labels.csv
    pipeline.py predict net.safetensors a.mp4 --window 1 --annotate a_labelled.mp4

    Without --window, a video is seen as evaluate sees it: one view over its whole length. With --window, its windows are
    averaged; a long video then takes no more memory than a short one. --timeline, --plot and --annotate keep a number for
    each class and window.

    Lines are written in the order of the videos, each as soon as it is known: if you stop the command, the lines stay, and
    each of them is whole. Outputs at a URL (s3://...) are put there at the end. A run writes its files anew. A video that
    can't be read has a line with its `error`; the exit status is then 1.
    """
    from stages.config.file import load_config
    from stages.predict.config import PredictConfig
    from stages.predict.predict import predict

    options["inputs"] = list(inputs) or None
    predict(load_config(PredictConfig, config_file, with_options(options, overrides)))
