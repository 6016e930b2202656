"""Command-line options that several commands share. This file imports click alone, so that help is quick."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stages.remote.url_path import UrlPath, is_url, location


class _AnyPath(click.ParamType):
    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | UrlPath:
        try:
            return location(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class LocalPath(click.Path):
    """A path of this machine. A URL is refused."""

    def __init__(self, **options: Any):
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if is_url(str(value)):
            self.fail(
                f"{value} is a URL, and this must be a path of this machine: give a local file or folder", param, ctx
            )
        return super().convert(value, param, ctx)


ANY_PATH = _AnyPath()  # a path of this machine, or a URL of a store
CONFIG = click.option(
    "--config", "config_file", type=LocalPath(), help="The config, a YAML file. configs/ has examples."
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the config, such as optim.lr=0.1. Repeatable; the last one wins.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything and print the plan. Write nothing.")


def ENGINE(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands whose work an engine can share out: `engine`, `address`, `actors`."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


_ENGINE = (
    click.option(
        "--engine",
        type=click.Choice(["ray"]),
        help="Share the work out to the machines of a Ray cluster, as they are free.",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="With --engine: the cluster.  [default: a Ray of this machine, for this run]",
    ),
    click.option(
        "--actors",
        type=click.IntRange(1),
        help="With --engine: processes on each machine.  [default: one a GPU; without GPUs, as its cores allow]",
    ),
)

JSON = click.option(
    "--json",
    "json_file",
    type=LocalPath(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the result to this file, as JSON; -: to standard output.",
)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the option --json FILE, which writes what the command returns."""

    @JSON
    @functools.wraps(command)
    def run(*arguments: Any, json_file: Path | None, **options: Any) -> None:
        from stages.config.json_result import json_result

        with json_result(json_file) as write:
            write(command(*arguments, **options))

    return run


def with_options(options: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The options that were given, as overrides "key=value", then those of --set, so that --set wins."""
    return as_overrides({name: value for name, value in options.items() if value is not None}) + list(overrides)


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Changes of a config, "a.b" -> value, as --set takes them. A path is a text; None is null."""
    return [
        f"{key}={as_yaml(str(value) if isinstance(value, (Path, UrlPath)) else value)}"
        for key, value in changes.items()
    ]


def as_yaml(value: Any) -> str:
    """A value as YAML in one line of ASCII.

    JSON is YAML, and its quotes protect blanks, colons and hashes in paths. YAML reads its escapes of two characters
    (for an emoji) as two, and takes no bytes that aren't UTF-8: both are written as YAML's own escapes.
    """
    return re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", json.dumps(value, ensure_ascii=False))
