"""The command `models`."""

import click


@click.command()
@click.option("--size", "sizes", type=int, multiple=True, default=(224, 112), show_default=True, help="px; repeatable.")
def models(sizes):
    """List the networks of the zoo: parameters, GFLOPs a view and a video, feature maps."""
    from stages.models.list_models import list_models

    list_models(sizes)
