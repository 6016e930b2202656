"""Options that several commands have, and how they become keys of a config. Imports click alone, so that help is quick."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

CONFIG = click.option("--config", "config_file", type=click.Path(path_type=Path), help="A YAML file; see configs/.")
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as optim.lr=0.1."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, do nothing.")


def with_options(options: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The options that were given, as overrides "key=value". Those of --set come last and win."""
    # JSON is YAML: a path keeps its blanks, colons and hashes
    return [f"{name}={json.dumps(value)}" for name, value in options.items() if value is not None] + list(overrides)
