"""The reader that cache/README.md shows, in numpy and zarr alone, against ours; and the page's tables against real caches."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from small_caches import CLASSES, CONSTANTS, GRID, SHARD, WIDTH, content, identity_of, keys_of, make_cache, write_views

from cache.codecs import CODECS, from_stored, scale_and_offset
from cache.create import create_cache
from cache.finalise import finalise
from cache.group import load_group, load_manifest, read_attributes
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.view import BLOCK
from cache.writer import ShardWriter

PAGE = (Path(__file__).parents[2] / "cache" / "README.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
CLIPS, CHANNELS = 70, 5  # two blocks of rows; of the teacher's own map, which a basis takes to WIDTH
LOST, NOT_FINITE = 3, 65  # a row that can't be decoded; one whose features, added later, hold NaN


@pytest.fixture(scope="module")
def reader() -> dict:
    """What the page's code defines."""
    defined = {}
    exec(compile(CODE, "cache/README.md", "exec"), defined)
    return defined


def small(path: Path, *, logits: str = "uint8", features: str = "float16", basis: bool = False, shard: str = SHARD):
    """A finished cache of two views, one clip of which is in quarantine."""
    whole = [*GRID, CHANNELS if basis else WIDTH]
    maps = {"codec": features, "grid": list(GRID), "width": WIDTH, "map": whole, "sample": None}
    identity = identity_of({shard: CLIPS}, targets={"logits": {"codec": logits, "width": CLASSES}, "features": maps})
    constants = dict(CONSTANTS)
    if basis:
        random = np.random.default_rng(1)
        constants |= {
            "basis": np.linalg.qr(random.normal(size=(CHANNELS, WIDTH)))[0],
            "mean": random.normal(size=CHANNELS),
        }
    if CODECS["features"][features].levels:
        constants |= scale_and_offset(np.full(WIDTH, -2.0), np.array([1.5, 2.0, 2.5]), features)
    manifest = create_cache(path, Manifest(identity, 2), constants)
    write_views(path, manifest, shard, range(2), invalid=[LOST])
    finalise(path)
    return path


def compare(reader: dict, path: Path) -> list[int]:
    """All that the page's reader gives, against CacheReader, exactly; how many rows of each view have targets."""
    ours, usable = CacheReader(path, tuple(load_manifest(path).identity.targets)), []
    constants = ours.constants()
    found = reader["constants"](path)
    assert found.keys() == constants.keys() and all(np.array_equal(found[name], constants[name]) for name in found)
    for entry in ours.manifest.identity.shards:
        for view in range(load_group(path, entry.name)["views"]):
            theirs = reader["read_view"](path, entry.name, view)
            for block in range(-(-entry.clips // BLOCK)):
                mine, rows = ours.block(entry.name, view, block), slice(block * BLOCK, (block + 1) * BLOCK)
                names = [
                    name for name in ("frames", "box", "flip", "valid", "logits") if getattr(mine, name) is not None
                ]
                assert theirs["keys"][rows].tolist() == list(mine.keys)
                for name in names:
                    assert theirs[name].dtype == getattr(mine, name).dtype
                    assert np.array_equal(theirs[name][rows], getattr(mine, name)), name
                if mine.features is not None:
                    maps = from_stored(mine.features, constants) * mine.valid[:, None, None, None, None]
                    assert theirs["features"].dtype == maps.dtype == np.float32
                    assert np.array_equal(theirs["features"][rows], maps)
            usable.append(int(theirs["valid"].sum()))
    return usable


def test_it_is_short_and_needs_numpy_and_zarr_alone():
    imported = {
        alias.name for node in ast.walk(ast.parse(CODE)) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module for node in ast.walk(ast.parse(CODE)) if isinstance(node, ast.ImportFrom)}
    assert imported == {"hashlib", "json", "pathlib", "numpy", "zarr"}
    assert len(CODE.splitlines()) <= 60


def test_a_cache_of_a_real_teacher(reader, cached):
    assert compare(reader, cached) == [80, 80, 80, 80, 40, 40]


@pytest.mark.parametrize("logits", CODECS["logits"])
@pytest.mark.parametrize("features", CODECS["features"])
@pytest.mark.parametrize("basis", [False, True], ids=["whole", "basis"])
def test_every_codec(reader, tmp_path, logits, features, basis):
    path = small(tmp_path / "c.zarr", logits=logits, features=features, basis=basis, shard=f"part/{SHARD}")
    assert compare(reader, path) == [CLIPS - 1, CLIPS - 1]


def test_logits_alone_and_features_that_came_later(reader, tmp_path):
    path = tmp_path / "c.zarr"
    make_cache(path, {SHARD: CLIPS}, 2, invalid=[LOST])
    assert compare(reader, path) == [CLIPS - 1, CLIPS - 1]
    manifest = create_cache(path, Manifest(identity_of({SHARD: CLIPS}, features=True), 2), CONSTANTS)
    assert "features" not in reader["read_view"](path, SHARD, 0)  # planned, and not committed
    writer = ShardWriter(path, manifest, SHARD, keys_of(SHARD, CLIPS), range(2))
    for view in range(2):
        columns = content(manifest.identity, SHARD, view, [LOST])
        del columns["logits"]
        columns["features"][NOT_FINITE, 0] = np.nan if view else 1
        writer.write(view, slice(0, CLIPS), finite=np.isfinite(columns["features"]).all((1, 2, 3, 4)), **columns)
    writer.commit({keys_of(SHARD, CLIPS)[NOT_FINITE]: "not finite"}, {})
    finalise(path)
    assert compare(reader, path) == [CLIPS - 1, CLIPS - 2]


def test_what_is_damaged_or_not_committed_is_no_data(reader, tmp_path):
    path = small(tmp_path / "c.zarr", features="int4")
    with pytest.raises(AssertionError, match="2 views are committed"):
        reader["read_view"](path, SHARD, 2)
    chunk = path / SHARD / "features" / "c.1.1.0.0.0.0"
    whole = chunk.read_bytes()
    chunk.write_bytes((path / SHARD / "features" / "c.1.0.0.0.0.0").read_bytes())
    with pytest.raises(AssertionError, match=r"features/c\.1\.1\.0\.0\.0\.0 is damaged"):
        reader["read_view"](path, SHARD, 1)
    reader["read_view"](path, SHARD, 0)
    chunk.unlink()
    with pytest.raises(FileNotFoundError):
        reader["read_view"](path, SHARD, 1)
    chunk.write_bytes(whole)
    (path / "scale" / "c.0").write_bytes((path / "offset" / "c.0").read_bytes())
    with pytest.raises(AssertionError, match="scale/c.0 is damaged"):
        reader["read_view"](path, SHARD, 1)


def rows_of(heading: str) -> dict[str, list[list[str]]]:
    """The cells of the tables below a heading: what stands in backticks first -> the other cells of each such row."""
    found = {}
    for line in PAGE.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines():
        if line.startswith("| `"):
            name, *cells = line.strip("| ").split(" | ")
            found.setdefault(name.strip("`"), []).append(cells)
    return found


def test_the_page_knows_every_attribute(cached):
    root, group = read_attributes(cached), read_attributes(cached / "000000.tar")
    assert rows_of("Attributes of the root").keys() == root.keys() | root["identity"].keys()
    assert rows_of("Attributes of a shard's group").keys() == group.keys()
    features = root["identity"]["targets"]["features"]
    for names in (
        root["notes"],
        root["notes"]["paid"],
        root["identity"]["teacher"],
        root["identity"]["shards"][0],
        features,
    ):
        assert all(name in PAGE for name in names), names


@pytest.mark.parametrize("features", CODECS["features"])
@pytest.mark.parametrize("logits", CODECS["logits"])
def test_the_page_knows_every_array(tmp_path, logits, features):
    path = small(tmp_path / "c.zarr", logits=logits, features=features, basis=True)
    sizes = {
        "N": CLIPS,
        "V": 2,
        "T": 2,
        "K": CLASSES,
        "d": WIDTH,
        "D": CHANNELS,
        "T'": GRID[0],
        "h": GRID[1],
        "w": GRID[2],
    }
    sizes |= {"min(64": 64}

    def shape(cell: str) -> tuple[int, ...]:
        return tuple(sizes.get(side) or int(side) for side in cell.replace("min(64, N)", "min(64").split(", "))

    told, found = rows_of("Arrays of a shard's group"), zarr.open_group(path / SHARD, mode="r")
    assert set(found.array_keys()) <= told.keys()
    for name, array in found.arrays():
        fill = {"NaN": np.nan, "false": False}
        cells = [
            (dtype, shape(whole), shape(chunk), str(fill.get(at, at))) for dtype, whole, chunk, at, _ in told[name]
        ]
        assert (str(array.dtype), array.shape, array.chunks, str(array.fill_value)) in cells
    told = rows_of("Codecs")
    for name, array in zarr.open_group(path, mode="r").arrays():
        assert array.shape == array.chunks == shape(told[name][0][0]) and array.dtype == np.float32
