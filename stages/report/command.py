"""The command `report`."""

import click


@click.command(short_help="Make one HTML page of runs, sweeps, caches and studies.")
def report():
    """Make one HTML page of runs, sweeps, caches and studies."""
