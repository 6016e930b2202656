"""The command `export`."""

import click


@click.command(short_help="Write a checkpoint as ONNX or as a program of torch.")
def export():
    """Write a CHECKPOINT in a format that other programs run."""
