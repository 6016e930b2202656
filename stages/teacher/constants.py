"""The constants of stored maps (basis, mean, ranges): taken from a cache, or still to be estimated."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from cache.errors import ReskdError
from cache.group import load_manifest, read_constants
from cache.identity import Identity
from cache.manifest import Manifest
from cache.reduction import Constants, reduced_shape
from cache.store import METADATA
from stages.models.video_model import model_stats
from stages.teacher.config import CacheConfig, FeaturesConfig
from stages.teacher.identity import in_todays_names
from stages.teacher.teacher import Teacher, uncompiled


def with_stored_maps(teacher: Teacher, wanted: Manifest, config: CacheConfig) -> tuple[Teacher, Manifest]:
    """The teacher and the manifest, with the settings of the stored maps.

    Constants that the cache or `features.basis` has are taken, never estimated again. Where an estimate is still needed,
    `teacher.constants` stays None.
    Raises ReskdError for a `features.basis` of another teacher, or of maps that are stored in another way.
    """
    stats, features = model_stats(uncompiled(teacher.model), teacher.size), teacher.features
    time, height, width = stats.grid
    grid = reduced_shape(stats.grid, features.time, features.grid)
    settings = {
        "codec": features.codec,
        "grid": grid,
        "width": features.dims or stats.width,
        "map": [time, height, width, stats.width],
        "sample": _sample_settings(features) if features.estimated else None,
    }
    teacher = replace(teacher, grid=tuple(grid))
    wanted = _with_features(wanted, settings)
    if not features.estimated:
        return with_constants(teacher, wanted, {})
    constants, lost_settings = _stored_constants(config, wanted)
    if constants is None:
        return teacher, wanted if lost_settings is None else _with_features(wanted, lost_settings)
    return with_constants(teacher, wanted, constants)


def _sample_settings(features: FeaturesConfig) -> dict[str, Any]:
    """What the constants were estimated on, and how. `rotate` is left out without a turn: older caches don't have it."""
    settings = features.model_dump(include={"dims", "energy", "sample"})
    return settings if features.rotate is None else {**settings, "rotate": features.rotate}


def with_constants(teacher: Teacher, wanted: Manifest, constants: Constants) -> tuple[Teacher, Manifest]:
    """The teacher that reduces maps by `constants` (a basis, ranges), and the manifest with their digest."""
    settings = dict(wanted.identity.targets["features"])
    if "basis" in constants:
        settings["width"] = constants["basis"].shape[1]
    digest = hashlib.sha256()
    for name in sorted(constants):
        digest.update(name.encode() + np.ascontiguousarray(constants[name], np.float32).tobytes())
    settings["constants_sha256"] = digest.hexdigest()
    return replace(teacher, constants=dict(constants)), _with_features(wanted, settings)


def root_arrays(teacher: Teacher, with_classifier: bool = True) -> dict[str, np.ndarray]:
    """The arrays at the root of the teacher's cache: the classifier of stored maps, and the constants.

    A cache of maps alone is made without the classifier.
    With a basis, the logits of a position are y (basis' W) + (mean W + b), so the classifier of y has [d,K] numbers.
    A head with a norm or with the network's own pooling is no linear function of the map: its classifier is not stored.
    """
    if teacher.features is None:
        return {}
    head, constants = uncompiled(teacher.model).head, teacher.constants
    if not head.has_class_map or not with_classifier:
        return dict(constants)
    fc = head.fc
    weight, bias = (tensor.detach().float().cpu().numpy() for tensor in (fc.weight.T, fc.bias))
    if "basis" in constants:
        weight64 = weight.astype(np.float64)
        bias = (constants["mean"] @ weight64 + bias).astype(np.float32)
        weight = (constants["basis"].T @ weight64).astype(np.float32)
    return {"classifier": weight, "classifier_bias": bias, **constants}


def _with_features(manifest: Manifest, settings: dict) -> Manifest:
    targets = {**manifest.identity.targets, "features": settings}
    return replace(manifest, identity=replace(manifest.identity, targets=targets))


def _stored_constants(config: CacheConfig, wanted: Manifest) -> tuple[Constants | None, dict | None]:
    """The basis and ranges of `features.basis`, or of the cache itself. (None, None) where they must be estimated.

    A cache that has lost its constants gives (None, its settings of the features).
    """
    basis = config.targets.features.basis
    source = basis or config.output
    if basis is None and not (source / METADATA).exists():
        return None, None
    stored = load_manifest(source)
    stored_settings, wanted_settings = _settings_of_basis(stored.identity), _settings_of_basis(wanted.identity)
    different = next((n for n in wanted_settings if stored_settings.get(n) != wanted_settings[n]), None)
    if different is not None:
        if basis is None:
            return None, None  # `check_cache` names the difference, unless the cache has no features yet
        raise ReskdError(f"targets.features.basis {source}: {different}: this cache has {stored_settings.get(different)}, this "
                         f"run wants {wanted_settings[different]}. A basis fits one teacher (weights, size, dtype) and one way "
                         f"to store its maps: leave `basis` out")  # fmt: skip
    try:
        return read_constants(source, stored, ("basis", "mean", "scale", "offset")), None
    except ReskdError:
        if basis is not None:
            raise
        return None, stored.identity.targets["features"]  # the second estimate gives the same constants


def _settings_of_basis(identity: Identity) -> dict[str, Any]:
    """The settings that must be equal for a basis to be shared, by name. The weights come first: they explain the rest."""
    maps = identity.targets.get("features", {})
    teacher = in_todays_names(identity.comparable())["teacher"]
    teacher = {"weights_sha256": teacher["weights_sha256"], **teacher}
    return {f"teacher.{name}": value for name, value in teacher.items()} | {
        f"targets.features.{name}": maps.get(name) for name in ("codec", "grid", "map", "sample")
    }
