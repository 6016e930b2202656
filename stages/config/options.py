"""Command-line options that several commands share. This file imports click alone, so that help is quick."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

CONFIG = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="The config, a YAML file. configs/ has examples."
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the config, such as optim.lr=0.1. Repeatable; the last one wins.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything and print the plan. Write nothing.")


def with_options(options: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The options that were given, as overrides "key=value", then those of --set, so that --set wins."""
    # JSON is YAML, and its quotes protect blanks, colons and hashes in paths.
    return [f"{name}={json.dumps(value)}" for name, value in options.items() if value is not None] + list(overrides)
