"""The command `predict`."""

import click


@click.command(short_help="Recognise what happens in videos.")
def predict():
    """Recognise what happens in videos, with a CHECKPOINT."""
