"""Writing a cache: one writer owns one shard's group. Readers see a view as soon as the group's attributes list it.

A new group is made in a temporary folder and then renamed. `growth.py` has the steps for a group that grows. Everything is
fsynced before the step that makes it visible. The next run removes or overwrites what a killed run left, so the same input
always gives the same bytes.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.arrays import array_specs, chunk_files, create_arrays
from cache.buffers import RowBuffers, Run, run_now
from cache.codecs import codec_of
from cache.errors import ReskdError
from cache.group import TEMPORARY, check_fingerprint, load_group, read_constants, write_attributes
from cache.growth import StoredViews, missing_work, prepare_growth, undo_growth
from cache.identity import keys_digest
from cache.manifest import FORMAT, Manifest
from cache.store import METADATA, check_inside, file_digest, make_folders, sync


class ShardWriter:
    """Writes the first pair (views, targets) of a shard's `missing_work`. `targets` are the targets of that pair.

    Either it adds views after the committed ones, in all targets; then `views` are the next views. Or it adds targets to the
    committed views; then `views` are all of these, and the views given to `write` must equal the stored ones.
    `keys` are the shard's keys, in tar order. `run` starts the jobs that write full blocks of maps: see `RowBuffers`.
    Raises ReskdError if the keys are not those of the manifest, or if another run made the shard's group.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        shard: str,
        keys: Sequence[str],
        views: range,
        run: Run = run_now,
    ):
        self.path, self.manifest, self.shard, self.keys, self.views = Path(path), manifest, shard, tuple(keys), views
        self.stored = load_group(self.path, shard)
        self.targets = self._checked_targets()
        self.adds_targets = self.stored is not None and not set(self.targets) & set(self.stored["targets"])
        self.specs = array_specs(manifest.identity, self.targets if self.adds_targets else None)
        self.folder = self.path / TEMPORARY / shard if self.stored is None else self.path / shard
        check_inside(self.path, self.folder, *(self.folder / name for name in self.specs))
        if self.stored is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            create_arrays(self.folder, self.specs, len(self.keys), views.stop)
        else:
            prepare_growth(self.folder, self.stored["files"], self.specs, len(self.keys), views.stop, self.adds_targets)
        self._constants = read_constants(self.path, manifest)
        self._buffers = RowBuffers(self.folder, self.specs, len(self.keys), run)
        self._next_row = dict.fromkeys(views, 0)
        self._complete = np.ones(len(self.keys), bool)  # rows that have all targets in all views so far
        self._stored_views = StoredViews(self.folder, self.stored["files"], views) if self.adds_targets else None

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
        stored: Mapping[str, np.ndarray] | None = None,
        **targets: np.ndarray,
    ) -> None:
        """Add the next n rows of a view, in tar order. The targets of a row are stored only if it is valid and finite.

        frames int [n,T], box float [n,4], flip and valid bool [n]. `targets`, those of the writer: logits float [n,K], features
        float [n,T',g,g',d], reduced as the manifest says. `stored`: in their place, the arrays that the codecs make of them, by
        name; maps channel by channel [n,d,T',g,g']. finite bool [n]: whether all targets of a row are finite.
        If targets are added, the stored views don't change. A row that isn't finite lacks only the new targets.
        Raises ReskdError for another shape, for values that the codec can't hold, and, if targets are added, for views that
        don't equal the stored ones.
        """
        next_row = self._next_row[view]
        assert rows.start == next_row, f"{self.shard}, view {view}: row {next_row} comes next, not {rows}"
        assert targets.keys() == (set(self.targets) if stored is None else set()), f"{self.shard}: {sorted(targets)}"
        count, valid = rows.stop - rows.start, np.asarray(valid, dtype=bool)
        if self.adds_targets:
            given = {"frames": frames, "box": box, "flip": flip, "valid": valid}
            self._stored_views.check(f"{self.path}, shard {self.shard}, view {view}", self.keys, view, rows, given)
            has_targets, columns = self._stored_views.valid(view, rows) & finite, {}
        else:
            has_targets = valid & finite
            columns = {"frames": frames, "box": box, "flip": flip, "valid": has_targets}
        self._complete[rows] &= has_targets
        arrays = dict(stored or {})
        for target, values in targets.items():
            arrays |= self._encoded(target, values, view, rows, has_targets)
        columns |= {name: self._filled(name, values, has_targets) for name, values in arrays.items()}
        assert columns.keys() == self.specs.keys(), f"{self.shard}: {sorted(columns)} for {sorted(self.specs)}"
        for name, values in columns.items():
            self._check_shape(name, values, (count, *self.specs[name].tail))
        for name, values in columns.items():
            self._buffers.append(name, view, rows.start, values)
        self._next_row[view] = rows.stop

    def commit(self, quarantine: Mapping[str, str], fallbacks: Mapping[str, str]) -> None:
        """Make the views visible to readers, durably, all of them or none.

        `quarantine`, `fallbacks`: key -> reason; they are added to the stored ones. Every row that lacks a target in one of
        the views must be in quarantine.
        """
        written = self._next_row
        assert all(row == len(self.keys) for row in written.values()), f"{self.shard}: unwritten rows: {written}"
        old = self.stored or {"files": {}, "quarantine": {}, "fallbacks": {}, "targets": {}}
        quarantine, fallbacks = {**quarantine, **old["quarantine"]}, {**fallbacks, **old["fallbacks"]}
        assert {*quarantine, *fallbacks} <= {*self.keys}, f"{self.shard}: reasons for clips of another shard"
        assert all(self.keys[row] in quarantine for row in np.flatnonzero(~self._complete))
        self._buffers.write_small_arrays(self.views)
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
        """Remove what is not committed. After a commit, even one that was interrupted at its very end, nothing is removed."""
        self._buffers.clear()
        if self.stored is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        committed = load_group(self.path, self.shard)  # read again: `self.stored` doesn't list what was just committed
        if not (self.adds_targets and set(self.targets) & set(committed["targets"])):
            undo_growth(self.folder, committed, self.specs, self.adds_targets)

    def _checked_targets(self) -> tuple[str, ...]:
        """The targets to write. Raises ReskdError if the keys or the views don't fit the cache."""
        entry, where = self.manifest.identity.shard(self.shard), f"{self.path}, shard {self.shard}"
        if len(self.keys) != entry.clips or keys_digest(self.keys) != entry.keys_sha256:
            raise ReskdError(
                f"{where}: its {len(self.keys)} keys are not the {entry.clips} keys of the cache's shard list: the shard "
                "or its index has changed. Restore it, or make a new cache."
            )
        assert len(self.keys) > 0 and self.views.step == 1 and self.views.start < self.views.stop
        work = missing_work(self.path, self.manifest, self.shard)
        views, targets = work[0] if work else (range(0), ())
        # A target is added to all committed views at once.
        fits = len(targets) == len(self.manifest.identity.targets) or self.views == views
        if self.views.start != views.start or self.views.stop > views.stop or not fits:
            committed = 0 if self.stored is None else self.stored["views"]
            raise ReskdError(
                f"{where} has {committed} views of {self.manifest.views}; views {self.views.start} to "
                f"{self.views.stop - 1} are not the next. If another run writes to this cache, wait until it ends."
            )
        if self.stored is not None:
            check_fingerprint(self.path, self.manifest.identity, self.shard, self.stored)
        return targets

    def _check_shape(self, name: str, values: np.ndarray, wanted: tuple[int, ...]) -> None:
        if np.shape(values) != wanted:
            raise ReskdError(
                f"{self.path}, shard {self.shard}: {name} have shape {list(np.shape(values))}, the cache's manifest "
                f"says {list(wanted)}: give the teacher that the cache was planned for."
            )

    def _encoded(self, target: str, values: np.ndarray, view: int, rows: slice, valid: np.ndarray):
        """The stored arrays of a target for these rows, by name. A row that isn't valid holds zeros."""
        settings = self.manifest.identity.targets[target]
        codec = codec_of(target, settings["codec"])
        self._check_shape(target, values, (len(valid), *settings.get("grid", ()), settings["width"]))
        try:
            encoded = codec.encode(values[valid], self._constants)
        except ReskdError as error:
            clips = f"{self.keys[rows.start]} to {self.keys[rows.stop - 1]}"
            raise ReskdError(
                f"{self.path}, shard {self.shard}, view {view}, clips {clips}: {error} Check the teacher "
                "(its checkpoint, its dtype), or choose another codec."
            ) from error
        if target == "features":
            encoded = {name: np.moveaxis(stored, -1, 1) for name, stored in encoded.items()}
        if valid.all():
            return encoded
        columns = {name: np.zeros((len(valid), *s.shape[1:]), dtype=s.dtype) for name, s in encoded.items()}
        for name, stored in encoded.items():
            columns[name][valid] = stored
        return columns

    def _filled(self, name: str, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """The array's values, with fill values in rows that aren't valid."""
        spec = self.specs[name]
        assert values.dtype == spec.dtype, f"{self.shard}: {name} are {values.dtype}, the cache has {spec.dtype}"
        if valid.all():
            return values
        values = values.copy()
        values[~valid] = spec.fill
        return values

    def _synced_files(self, old: Mapping[str, list]) -> dict[str, list]:
        """fsync all new chunk files, the arrays' folders and metadata. Returns the new chunk files: file -> [size, sha256]."""
        files = self._buffers.written_blocks()
        for name in self.specs:
            for path in sorted((self.folder / name).iterdir()):
                chunk = f"{name}/{path.name}"
                if chunk in old or chunk in files:
                    continue
                sync(path)
                if path.name != METADATA:
                    files[chunk] = file_digest(path)
            sync(self.folder / name)
        expected = {
            f"{name}/{c}" for name, spec in self.specs.items() for c in chunk_files(spec, len(self.keys), self.views)
        }
        assert files.keys() == expected, f"{self.shard}: chunk files {sorted(files.keys() ^ expected)}"
        return files

    def _publish(self) -> None:
        """Rename the new group to its final path."""
        target = self.path / self.shard
        make_folders(target.parent)
        if target.exists():
            raise ReskdError(f"{target} exists and is not a committed shard: delete it and run cache-teacher again.")
        sync(self.folder.parent)
        self.folder.rename(target)
        sync(target.parent)
