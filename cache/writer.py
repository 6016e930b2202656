"""Writing a cache: one writer owns one shard's group; a view is there, for readers, when the attributes say so.

A new group is built in a temporary folder and renamed into place. More views: the arrays' shapes, then the new chunk
files, then the attributes. Everything is fsynced before the step which makes it visible, and whatever a killed run
left behind is removed or overwritten by the next, so that the same input always ends in the same bytes.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.codecs import codec_of
from cache.errors import ReskdError
from cache.group import (
    TEMPORARY,
    array_specs,
    check_fingerprint,
    classifier_files,
    create_arrays,
    load_group,
    load_manifest,
    open_for_writing,
    resize_array,
    write_attributes,
)
from cache.manifest import CLASSIFIER, FORMAT, Manifest, differences, keys_digest
from cache.store import METADATA, file_digest, make_folders, sync, write_atomically


def check_cache(path: str | Path, manifest: Manifest) -> Manifest:
    """The manifest that `create_cache` would leave; nothing is written.

    An existing cache must have the same identity; its planned views can be raised, and what is finished stays so.
    Raises ReskdError, naming every difference, where it hasn't, for fewer views, and for a folder of something else.
    """
    path = Path(path)
    if (path / METADATA).exists():
        stored = load_manifest(path)
        lines = differences(stored.identity, manifest.identity)
        if lines:
            raise ReskdError(
                f"{path} was made by another run:\n  " + "\n  ".join(lines) + "\nGive another output folder, "
                "go back to the settings of the cache, or delete it."
            )
        if manifest.views < stored.views:
            raise ReskdError(
                f"{path} is planned for {stored.views} views, this run wants {manifest.views}: views can be added, "
                f"not taken away. Ask for at least {stored.views}, or give another output folder."
            )
        return replace(stored, views=manifest.views)
    if path.exists() and (not path.is_dir() or any(not _ours(p) for p in path.iterdir())):
        raise ReskdError(f"{path} holds something else than a cache: give another output folder.")
    if manifest.views < 1:
        raise ReskdError(f"a cache needs at least 1 view, not {manifest.views}.")
    array_specs(manifest.identity)  # an unknown codec is refused before any work
    return manifest


def _ours(path: Path) -> bool:
    """Whether an entry of a folder without a manifest may be what a killed run left of a cache in the making."""
    if path.name in CLASSIFIER and path.is_dir():
        return all(p.name == METADATA or p.name[:2] == "c." or p.name[:1] == "." for p in path.iterdir())
    return path.name.startswith(".")


def create_cache(
    path: str | Path, manifest: Manifest, classifier: tuple[np.ndarray, np.ndarray] | None = None
) -> Manifest:
    """Make an empty cache, or open the one that is there; returns the manifest that holds from now on.

    `classifier`: the teacher's weight [D,K] and bias [K]. They are written where they aren't there whole already, so
    that a rerun repairs them: they follow from the identity.
    Raises ReskdError as `check_cache` does.
    """
    path, manifest = Path(path), check_cache(path, manifest)
    if classifier is not None:
        manifest = replace(manifest, classifier=_write_classifier(path, manifest, *classifier))
    if not (path / METADATA).exists() or load_manifest(path) != manifest:
        make_folders(path)
        write_attributes(path, manifest.to_json())
    return manifest


def _write_classifier(path: Path, manifest: Manifest, weight: np.ndarray, bias: np.ndarray) -> dict[str, list]:
    """Before the manifest, which lists their digests; returns these."""
    targets = manifest.identity.targets
    assert weight.shape == (targets["features"]["width"], *bias.shape) and bias.shape == (targets["logits"]["width"],)
    digests = {}
    for name, data in classifier_files(weight, bias).items():
        digests[name], file = [len(data), hashlib.sha256(data).hexdigest()], path / name
        if not file.is_file() or file_digest(file) != digests[name]:
            make_folders(file.parent)
            write_atomically(file, data)
    return digests


def committed_views(path: str | Path, shard: str) -> int:
    """How many views of a shard are committed: 0 where its group isn't there."""
    attributes = load_group(Path(path), shard)
    return 0 if attributes is None else attributes["views"]


def finalise(path: str | Path) -> Manifest:
    """Declare the planned views finished: gathers every shard's quarantine into the root, atomically.

    Raises ReskdError where a shard lacks views, or was made by another run.
    """
    path = Path(path)
    manifest = load_manifest(path)
    quarantine, unfinished = {}, []
    for entry in manifest.identity.shards:
        attributes = load_group(path, entry.name)
        if attributes is None or attributes["views"] < manifest.views:
            unfinished.append(f"{entry.name} ({0 if attributes is None else attributes['views']})")
            continue
        check_fingerprint(path, manifest.identity, entry.name, attributes)
        rows = {key: row for row, key in enumerate(attributes["keys"])}
        if attributes["quarantine"]:
            quarantine[entry.name] = {rows[key]: reason for key, reason in attributes["quarantine"].items()}
    if unfinished:
        raise ReskdError(
            f"{path} is not finished: {len(unfinished)} of {len(manifest.identity.shards)} shards have fewer than "
            f"{manifest.views} views: {', '.join(unfinished[:3])}{' …' if len(unfinished) > 3 else ''}. "
            "Run cache-teacher again: it does what is missing."
        )
    manifest = replace(manifest, finalised=manifest.views, quarantine=quarantine)
    write_attributes(path, manifest.to_json())
    shutil.rmtree(path / TEMPORARY, ignore_errors=True)
    return manifest


class ShardWriter:
    """Writes the views `views` of one shard, which must be the next after the committed ones.

    `keys` are the shard's, in tar order. Raises ReskdError where they are not those of the manifest, or where the
    shard's group is another run's.
    """

    def __init__(self, path: str | Path, manifest: Manifest, shard: str, keys: Sequence[str], views: range):
        self.path, self.manifest, self.shard, self.keys, self.views = Path(path), manifest, shard, tuple(keys), views
        self.specs = array_specs(manifest.identity)
        self.stored = load_group(self.path, shard)
        self._check()
        if self.stored is None:
            self.folder = self.path / TEMPORARY / shard
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            create_arrays(self.folder, self.specs, len(self.keys), views.stop)
        else:
            self.folder = self.path / shard
            _remove_unlisted(self.folder, self.stored["files"])
            for name in self.specs:
                resize_array(self.folder / name, views.stop)
        self._arrays = {name: open_for_writing(self.folder, name) for name in self.specs}
        # Small arrays are kept whole until the commit, maps by blocks: a shard's maps don't fit in memory.
        self._rows = {name: (len(self.keys) if s.rows is None else s.rows) for name, s in self.specs.items()}
        self._buffers: dict[tuple[str, int], np.ndarray] = {}
        self._next = dict.fromkeys(views, 0)

    def write(
        self,
        view: int,
        rows: slice,
        *,
        frames: np.ndarray,
        box: np.ndarray,
        flip: np.ndarray,
        valid: np.ndarray,
        logits: np.ndarray | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        """Hand in the next n rows of a view, in tar order. What isn't valid is stored as "not there".

        frames int [n,T], box float [n,4], flip and valid bool [n], logits float [n,K], features float [n,T',h,w,D];
        targets as the manifest has them. Raises ReskdError for another shape, and for values its codec can't hold.
        """
        assert rows.start == self._next[view], f"{self.shard}, view {view}: row {self._next[view]} comes next, {rows}"
        count, valid = rows.stop - rows.start, np.asarray(valid, dtype=bool)
        columns = {"frames": frames, "box": box, "flip": flip, "valid": valid}
        for name, values in columns.items():
            self._check_shape(name, values, (count, *self.specs[name].tail))
        for target, values in (("logits", logits), ("features", features)):
            columns |= self._encoded(target, values, view, rows, valid)
        for name, values in columns.items():
            self._append(name, view, rows.start, values)
        self._next[view] = rows.stop

    def commit(self, quarantine: Mapping[str, str], fallbacks: Mapping[str, str]) -> None:
        """Make the views visible, durably, all or none. `quarantine`, `fallbacks`: key -> reason, added to the stored.

        Every row that is not valid in one of the views must be in quarantine.
        """
        count = len(self.keys)
        assert all(rows == count for rows in self._next.values()), f"{self.shard}: unwritten rows: {self._next}"
        old = self.stored or {"files": {}, "quarantine": {}, "fallbacks": {}}
        quarantine, fallbacks = {**quarantine, **old["quarantine"]}, {**fallbacks, **old["fallbacks"]}
        assert {*quarantine, *fallbacks} <= {*self.keys}, f"{self.shard}: reasons for clips that it hasn't"
        valid = np.stack([self._buffers["valid", view] for view in self.views])
        assert all(self.keys[row] in quarantine for row in np.flatnonzero(~valid.all(axis=0)))
        for name, spec in self.specs.items():
            if spec.rows is None:
                for view in self.views:
                    self._arrays[name][:, view] = self._buffers[name, view]
        attributes = {
            "format": FORMAT,
            "fingerprint": self.manifest.identity.fingerprint(self.shard),
            "keys": self.keys,
            "keys_sha256": keys_digest(self.keys),
            "quarantine": quarantine,
            "fallbacks": fallbacks,
            "views": self.views.stop,
            "files": old["files"] | self._synced_files(old["files"]),
        }
        write_attributes(self.folder, attributes)
        if self.stored is None:
            self._publish()
        self._buffers.clear()

    def abort(self) -> None:
        """Give up: what is not committed goes. After a commit, even one interrupted at its very end, nothing does."""
        self._buffers.clear()
        if self.stored is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        now = load_group(self.path, self.shard)  # not what was read at the start, lest the new views be deleted
        _remove_unlisted(self.folder, now["files"])
        for name in self.specs:
            resize_array(self.folder / name, now["views"])

    def _check(self) -> None:
        entry, where = self.manifest.identity.shard(self.shard), f"{self.path}, shard {self.shard}"
        if len(self.keys) != entry.clips or keys_digest(self.keys) != entry.keys_sha256:
            raise ReskdError(
                f"{where}: its {len(self.keys)} keys are not the {entry.clips} of the cache's shard list: the shard "
                "or its index has changed. Restore it, or make a new cache."
            )
        assert len(self.keys) > 0 and self.views.step == 1 and self.views.start < self.views.stop
        committed = 0 if self.stored is None else self.stored["views"]
        if self.views.start != committed or self.views.stop > self.manifest.views:
            raise ReskdError(
                f"{where} has {committed} views of {self.manifest.views}; views {self.views.start} to "
                f"{self.views.stop - 1} are not the next. Is another run at work on this cache? Let one end."
            )
        if self.stored is not None:
            check_fingerprint(self.path, self.manifest.identity, self.shard, self.stored)

    def _check_shape(self, name: str, values: np.ndarray, wanted: tuple[int, ...]) -> None:
        if np.shape(values) != wanted:
            raise ReskdError(
                f"{self.path}, shard {self.shard}: {name} come as {list(np.shape(values))}, the cache's manifest "
                f"says {list(wanted)}: the teacher is not the one that the cache was planned for."
            )

    def _encoded(self, target: str, values: np.ndarray | None, view: int, rows: slice, valid: np.ndarray):
        """The arrays of a target for these rows, by name, with sentinels where a row isn't valid."""
        settings = self.manifest.identity.targets.get(target)
        if settings is None or values is None:
            assert settings is None and values is None, f"{target}: the manifest says {settings}"
            return {}
        codec = codec_of(target, settings["codec"])
        self._check_shape(target, values, (len(valid), *settings.get("grid", ()), settings["width"]))
        try:
            encoded = codec.encode(values[valid])
        except ReskdError as error:
            clips = f"{self.keys[rows.start]} to {self.keys[rows.stop - 1]}"
            raise ReskdError(
                f"{self.path}, shard {self.shard}, view {view}, clips {clips}: {error} Look into the teacher "
                "(its checkpoint, its dtype), or choose another codec."
            ) from error
        if valid.all():
            return encoded
        columns = {}
        for name, stored in encoded.items():
            columns[name] = np.full((len(valid), *stored.shape[1:]), self.specs[name].fill, dtype=stored.dtype)
            columns[name][valid] = stored
        return columns

    def _append(self, name: str, view: int, start: int, values: np.ndarray) -> None:
        """Put rows into the view's buffer, and full blocks of maps onto the disk."""
        size, stop, end = self._rows[name], start + len(values), len(self.keys)
        for low in range(start - start % size, stop, size):
            first, last = max(start, low), min(stop, low + size)
            if (name, view) not in self._buffers:
                self._buffers[name, view] = self._empty(name)
            self._buffers[name, view][first - low : last - low] = values[first - start : last - start]
            if self.specs[name].rows is not None and last in (low + size, end):
                self._arrays[name][low:last, view] = self._buffers.pop((name, view))[: last - low]

    def _empty(self, name: str) -> np.ndarray:
        spec = self.specs[name]
        return np.full((min(self._rows[name], len(self.keys)), *spec.tail), spec.fill, dtype=spec.dtype)

    def _synced_files(self, old: Mapping[str, list]) -> dict[str, list]:
        """fsync all new chunk files, the arrays' folders and metadata; returns the files with size and sha256."""
        files = {}
        for name in self.specs:
            for path in sorted((self.folder / name).iterdir()):
                chunk = f"{name}/{path.name}"
                if chunk in old:
                    continue
                sync(path)
                if path.name != METADATA:
                    files[chunk] = file_digest(path)
            sync(self.folder / name)
        wanted = {f"{name}/{chunk}" for name in self.specs for chunk in self._chunks(name)}
        assert files.keys() == wanted, f"{self.shard}: chunk files {sorted(files.keys() ^ wanted)}"
        return files

    def _chunks(self, name: str) -> list[str]:
        spec, blocks = self.specs[name], range(-(-len(self.keys) // self._rows[name]))
        return [".".join(map(str, ("c", b, v, *(0 for _ in spec.tail)))) for b in blocks for v in self.views]

    def _publish(self) -> None:
        """Rename the new group into place."""
        target = self.path / self.shard
        make_folders(target.parent)
        if target.exists():
            raise ReskdError(f"{target} is in the way and is not a committed shard: delete it and run again.")
        sync(self.folder.parent)
        self.folder.rename(target)
        sync(target.parent)


def _remove_unlisted(folder: Path, files: Mapping[str, list]) -> None:
    """Remove what a killed run left in a committed group: chunks which its attributes don't list, unfinished writes."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != METADATA and relative not in files:
            path.unlink()
