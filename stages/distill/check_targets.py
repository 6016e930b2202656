"""Refuses, before training, a cache that can't serve a student."""

from __future__ import annotations

from cache.errors import ReskdError
from cache.manifest import Manifest
from stages.distill.config import LossConfig
from stages.models.video_model import ModelOutput


def check_targets(manifest: Manifest, losses: LossConfig, output: ModelOutput, num_frames: int) -> None:
    """`output` is the student's for any one clip.

    Raises ReskdError for a target that the cache doesn't store, another number of frames or classes, a feature map of
    another length in time, and a feature map that is reduced to another grid than the student's. Other grids and widths
    may differ.
    """
    stored = manifest.identity.targets
    if manifest.identity.policy.num_frames != num_frames:
        raise ReskdError(
            f"the cache's views have {manifest.identity.policy.num_frames} frames, the student takes {num_frames}: "
            f"set model.num_frames to the cache's"
        )
    for name in losses.stored_targets:
        if name not in stored:
            raise ReskdError(f"the cache stores {sorted(stored)}, but the losses need {name!r}: add it to the cache "
                             f"(cache-teacher again, with targets.{name}), or set the weight of its term to 0")  # fmt: skip
    if "features" in losses.stored_targets:
        _check_maps(stored["features"], losses, list(output.features.shape[1:4]), num_frames)
    reads_classes = losses.teacher_reads("logits") or losses.teacher_reads("class_map")
    if reads_classes and stored["logits"]["width"] != output.logits.shape[1]:
        raise ReskdError(f"the cache has logits of {stored['logits']['width']} classes, the student of "
                         f"{output.logits.shape[1]}: both must come from one class list")  # fmt: skip


def _check_maps(maps: dict, losses: LossConfig, own: list[int], num_frames: int) -> None:
    """`own`: [T',h,w] of the student's map."""
    cached = maps["grid"]
    readers = {name: loss for name, loss in losses.used.items() if {"features", "class_map"} & {*loss.teacher}}
    if cached[0] != own[0]:
        names = " and ".join(readers)
        raise ReskdError(
            f"losses.{names}: the cached map is {'×'.join(map(str, cached))}, the student's "
            f"{'×'.join(map(str, own))}, of one clip; the times (first) must be equal: choose a student that "
            f"keeps as many of its {num_frames} frames as the teacher does, or set the weight of {names} to 0"
        )
    grid, whole = cached[1:], maps["map"][1:3]
    if grid == whole:
        return
    for name, loss in readers.items():
        if not loss.reduced_grid:
            raise ReskdError(
                f"losses.{name}: the cached maps are reduced from {whole[0]}×{whole[1]} to {grid[0]}×{grid[1]}, which "
                "keeps the gradient of feature_mse alone: use that, or make a cache without targets.features.grid"
            )
    if grid != own[1:]:
        raise ReskdError(
            f"losses.{' and '.join(readers)}: the cached maps are reduced to {grid[0]}×{grid[1]} for students of that "
            f"grid, but this student has the grid {own[1]}×{own[2]}: choose a size that gives {grid[0]}×{grid[1]}, or make a "
            "cache without targets.features.grid, which serves every student"
        )
