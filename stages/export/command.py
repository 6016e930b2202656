"""The command `export`."""

import click

from stages.config.options import CONFIG, SET, json_option, with_options


@click.command(short_help="Write a checkpoint as ONNX or as a program of torch.")
@click.argument("checkpoint", required=False)
@click.argument("output", metavar="OUT", required=False)
@click.option("--int8", is_flag=True, help="OUT.onnx: 8-bit weights and activations, calibrated on --data.")
@click.option("--data", help="A data set made by prepare: its clips check the file, and calibrate --int8.")
@click.option("--calibrate", type=int, help="Clips of --data for the check and for --int8.  [default: 128]")
@click.option(
    "--max-drop",
    "max_drop",
    type=float,
    help="Points of top-1 that --int8 may cost, on up to 1,000 clips of --data.  [default: 1]",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists already.")
@CONFIG
@SET
@json_option
def export(config_file, overrides, int8, overwrite, **options):
    """Write a CHECKPOINT (.safetensors) in a format that other programs run, and check it.

    \b
    OUT.onnx  ONNX, for onnxruntime and others; beside it run_onnx.py, which runs it on videos without this program
    OUT.pt2   a program of torch.export, for torch.export.load

    CHECKPOINT and OUT may be at a URL (s3://...).

    Both take frames, uint8 [B,T,3,S,S] in RGB, and give logits and probabilities, float32 [B,K]; any B will do. The
    file also holds the names of the classes, the size, and how frames are chosen. It is run and compared with the
    network on clips of --data, or on noise. A file whose answers differ is not kept. ONNX needs the extra `export`.

    \b
    uv run --extra export pipeline.py export runs/own/student/best.safetensors student.onnx --data data/val
    uv run --extra export pipeline.py export runs/own/student/best.safetensors int8.onnx --int8 --data data/val
    python run_onnx.py student.onnx video.mp4
    """
    from stages.config.file import load_config
    from stages.export.config import ExportConfig
    from stages.export.export import export

    options |= {"int8": int8 or None, "overwrite": overwrite or None}
    return export(load_config(ExportConfig, config_file, with_options(options, overrides)))
