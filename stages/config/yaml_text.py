"""YAML of others: plain values alone, no objects, and no more of them than a config can have."""

import io
from typing import Any

import yaml

from stages.remote.url_path import Location

MAX_CHARACTERS = 1 << 20  # of a file
MAX_VALUES = 100_000  # of a text, with each alias written out: ten lines of aliases of aliases stand for a billion
MAX_DEPTH = 50


def read_yaml(file: Location) -> Any:
    """The value of a YAML file. Raises OSError, UnicodeDecodeError, and yaml.YAMLError as `parse_yaml`."""
    with file.open("rb") as binary, io.TextIOWrapper(binary, encoding="utf-8") as opened:
        text = opened.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS} characters")
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; None for an empty text.

    Raises yaml.YAMLError for a tag of an object (nothing is built from it), for a value that isn't what its tag says, for
    aliases that contain themselves, and for more than MAX_VALUES values or MAX_DEPTH levels.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _measure(node, {})
        return None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:  # of PyYAML, for `!!bool x`
        raise yaml.YAMLError(f"a value that can't be read ({error!r:.200})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _measure(node: yaml.Node | None, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """The number of values and of levels of a node, with each alias written out. `known`: those measured; None: at work."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1, 0
    if id(node) not in known:
        known[id(node)] = None
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        measured = [_measure(part, known) for part in parts]
        values, levels = 1 + sum(v for v, _ in measured), 1 + max((n for _, n in measured), default=0)
        if values > MAX_VALUES or levels > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values, or more than {MAX_DEPTH} levels, with its aliases")
        known[id(node)] = values, levels
    if known[id(node)] is None:
        raise yaml.YAMLError("an alias inside of what it stands for")
    return known[id(node)]
