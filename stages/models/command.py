"""The command `models`."""

import click

from stages.config.options import json_option


@click.command()
@click.option(
    "--size",
    "sizes",
    type=int,
    multiple=True,
    default=(224, 112),
    show_default=True,
    help="Size of the input in px. Repeatable.",
)
@json_option
def models(sizes):
    """List the networks of the zoo and their cost.

    The table shows parameters, GFLOPs of a view and of a video, and the shape of the feature map. Nothing is downloaded.
    import-checkpoint --model takes these names.
    """
    from stages.models.list_models import list_models

    return list_models(sizes)
