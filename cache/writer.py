"""Writing a cache: one writer owns one shard's group; a view is there, for readers, when the attributes say so.

A new group is built in a temporary folder and renamed into place. `growth.py` has what is different for a group that grows.
Everything is fsynced before the step that makes it visible. What a killed run left is removed or overwritten by the next
run, so that the same input always ends in the same bytes.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.codecs import codec_of
from cache.errors import ReskdError
from cache.group import (
    TEMPORARY,
    array_specs,
    check_fingerprint,
    create_arrays,
    load_group,
    open_for_writing,
    read_constants,
    write_attributes,
)
from cache.growth import StoredViews, close_group, missing_work, open_group
from cache.identity import keys_digest
from cache.manifest import FORMAT, Manifest
from cache.store import METADATA, file_digest, make_folders, sync


class ShardWriter:
    """Writes what a shard lacks first of `missing_work`: `views` must be of that, and `targets` are its targets.

    Either the next views after the committed ones, in all targets; or all committed views in targets that they lack, and
    then the views handed in must be the stored ones. `keys` are the shard's, in tar order.
    Raises ReskdError where they are not those of the manifest, or where the shard's group is another run's.
    """

    def __init__(self, path: str | Path, manifest: Manifest, shard: str, keys: Sequence[str], views: range):
        self.path, self.manifest, self.shard, self.keys, self.views = Path(path), manifest, shard, tuple(keys), views
        self.stored = load_group(self.path, shard)
        self.targets = self._check()
        self.adds_targets = self.stored is not None and not set(self.targets) & set(self.stored["targets"])
        self.specs = array_specs(manifest.identity, self.targets if self.adds_targets else None)
        if self.stored is None:
            self.folder = self.path / TEMPORARY / shard
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            create_arrays(self.folder, self.specs, len(self.keys), views.stop)
        else:
            self.folder = self.path / shard
            open_group(self.folder, self.stored["files"], self.specs, len(self.keys), views.stop, new=self.adds_targets)
        self._constants = read_constants(self.path, manifest)
        self._arrays = {name: open_for_writing(self.folder, name) for name in self.specs}
        # Small arrays are kept whole until the commit, maps by blocks: a shard's maps don't fit in memory.
        self._rows = {name: (len(self.keys) if s.rows is None else s.rows) for name, s in self.specs.items()}
        self._buffers: dict[tuple[str, int], np.ndarray] = {}
        self._next = dict.fromkeys(views, 0)
        self._whole = np.ones(len(self.keys), bool)  # rows that have all targets in all views so far
        self._seen = StoredViews(self.folder, self.stored["files"], views) if self.adds_targets else None

    def write(
        self,
        view: int,
        rows: slice,
        *,
        frames: np.ndarray,
        box: np.ndarray,
        flip: np.ndarray,
        valid: np.ndarray,
        finite: np.ndarray | bool = True,
        **targets: np.ndarray,
    ) -> None:
        """Hand in the next n rows of a view, in tar order. What isn't valid and finite is stored as "not there".

        frames int [n,T], box float [n,4], flip and valid bool [n]; logits float [n,K], features float [n,T',g,g',d], reduced
        as the manifest has it: those of `targets`; finite bool [n]: whether a row's targets are.
        Where targets are added, what is stored of the views stays as it is, of rows that aren't finite, too: these lack
        the new targets alone.
        Raises ReskdError for another shape, values its codec can't hold, and, where targets are added, for views that
        aren't the stored ones.
        """
        assert rows.start == self._next[view], f"{self.shard}, view {view}: row {self._next[view]} comes next, {rows}"
        assert targets.keys() == set(self.targets), f"{self.shard}: {sorted(targets)} for {self.targets}"
        count, valid = rows.stop - rows.start, np.asarray(valid, dtype=bool)
        if self.adds_targets:
            given = {"frames": frames, "box": box, "flip": flip, "valid": valid}
            self._seen.check(f"{self.path}, shard {self.shard}, view {view}", self.keys, view, rows, given)
            whole, columns = self._seen.valid(view, rows) & finite, {}
        else:
            whole = valid & finite
            columns = {"frames": frames, "box": box, "flip": flip, "valid": whole}
        self._whole[rows] &= whole
        for name, values in columns.items():
            self._check_shape(name, values, (count, *self.specs[name].tail))
        for target, values in targets.items():
            columns |= self._encoded(target, values, view, rows, whole)
        for name, values in columns.items():
            self._append(name, view, rows.start, values)
        self._next[view] = rows.stop

    def commit(self, quarantine: Mapping[str, str], fallbacks: Mapping[str, str]) -> None:
        """Make the views visible, durably, all or none. `quarantine`, `fallbacks`: key -> reason, added to the stored.

        Every row that lacks targets in one of the views must be in quarantine.
        """
        count = len(self.keys)
        assert all(rows == count for rows in self._next.values()), f"{self.shard}: unwritten rows: {self._next}"
        old = self.stored or {"files": {}, "quarantine": {}, "fallbacks": {}, "targets": {}}
        quarantine, fallbacks = {**quarantine, **old["quarantine"]}, {**fallbacks, **old["fallbacks"]}
        assert {*quarantine, *fallbacks} <= {*self.keys}, f"{self.shard}: reasons for clips that it hasn't"
        assert all(self.keys[row] in quarantine for row in np.flatnonzero(~self._whole))
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
            "targets": old["targets"] | {t: self.manifest.identity.target_fingerprint(t) for t in self.targets},
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
        if not (self.adds_targets and set(self.targets) & set(now["targets"])):
            close_group(self.folder, now, self.specs, new=self.adds_targets)

    def _check(self) -> tuple[str, ...]:
        """The targets that are to be written."""
        entry, where = self.manifest.identity.shard(self.shard), f"{self.path}, shard {self.shard}"
        if len(self.keys) != entry.clips or keys_digest(self.keys) != entry.keys_sha256:
            raise ReskdError(
                f"{where}: its {len(self.keys)} keys are not the {entry.clips} of the cache's shard list: the shard "
                "or its index has changed. Restore it, or make a new cache."
            )
        assert len(self.keys) > 0 and self.views.step == 1 and self.views.start < self.views.stop
        work = missing_work(self.path, self.manifest, self.shard)
        views, targets = work[0] if work else (range(0), ())
        whole = len(targets) == len(self.manifest.identity.targets) or self.views == views
        if self.views.start != views.start or self.views.stop > views.stop or not whole:
            committed = 0 if self.stored is None else self.stored["views"]
            raise ReskdError(
                f"{where} has {committed} views of {self.manifest.views}; views {self.views.start} to "
                f"{self.views.stop - 1} are not the next. Is another run at work on this cache? Let one end."
            )
        if self.stored is not None:
            check_fingerprint(self.path, self.manifest.identity, self.shard, self.stored)
        return targets

    def _check_shape(self, name: str, values: np.ndarray, wanted: tuple[int, ...]) -> None:
        if np.shape(values) != wanted:
            raise ReskdError(
                f"{self.path}, shard {self.shard}: {name} come as {list(np.shape(values))}, the cache's manifest "
                f"says {list(wanted)}: the teacher is not the one that the cache was planned for."
            )

    def _encoded(self, target: str, values: np.ndarray, view: int, rows: slice, valid: np.ndarray):
        """The arrays of a target for these rows, by name, with sentinels where a row isn't valid."""
        settings = self.manifest.identity.targets[target]
        codec = codec_of(target, settings["codec"])
        self._check_shape(target, values, (len(valid), *settings.get("grid", ()), settings["width"]))
        try:
            encoded = codec.encode(values[valid], self._constants)
        except ReskdError as error:
            clips = f"{self.keys[rows.start]} to {self.keys[rows.stop - 1]}"
            raise ReskdError(
                f"{self.path}, shard {self.shard}, view {view}, clips {clips}: {error} Look into the teacher "
                "(its checkpoint, its dtype), or choose another codec."
            ) from error
        if target == "features":
            encoded = {name: np.moveaxis(stored, -1, 1) for name, stored in encoded.items()}
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
