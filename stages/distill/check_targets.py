"""Checks, before training, that a cache has what a student's losses need."""

from __future__ import annotations

from cache.errors import ReskdError
from cache.manifest import Manifest
from stages.distill.config import LossConfig
from stages.distill.losses import LOSSES
from stages.distill.targets import NO_CLASS_MAP
from stages.models.video_model import ModelOutput


def check_targets(manifest: Manifest, losses: LossConfig, output: ModelOutput, num_frames: int) -> None:
    """Check a cache against a student's losses. `output` is the student's output for one clip; only its shapes are read.

    Raises ReskdError if the cache lacks a target, or has another number of frames or classes than the student, or maps that
    are reduced to another grid, or to the student's grid but with other times. Whole grids, times and widths may differ.
    """
    stored = manifest.identity.targets
    if manifest.identity.policy.num_frames != num_frames:
        raise ReskdError(
            f"the cache's views have {manifest.identity.policy.num_frames} frames, the student takes {num_frames}: "
            f"set model.num_frames={manifest.identity.policy.num_frames}"
        )
    for name in losses.stored_targets:
        if name not in stored:
            raise ReskdError(f"the cache stores {sorted(stored)}, but the losses need {name!r}: add it to the cache "
                             f"(cache-teacher again, with targets.{name}), or set the weight of that loss to 0")  # fmt: skip
    if "features" in losses.stored_targets:
        _check_maps(stored["features"], losses, list(output.features.shape[1:4]))
    for name, loss in losses.used.items():
        if "channel_std" in loss.teacher and not any(file.startswith("channel_std/") for file in manifest.constants):
            raise ReskdError(
                f"losses.{name} needs the deviations of the teacher's channels, and this cache has none (it isn't finished, or "
                "an older version made it): run cache-teacher with the cache's config again, which adds them and computes "
                f"nothing else; or set losses.{name} to 0"
            )
    net = manifest.identity.teacher.get("model", {})
    if losses.teacher_reads("class_map") and (net.get("head_norm") or net.get("pooling") == "own"):
        raise ReskdError(NO_CLASS_MAP)
    if losses.teacher_reads("class_map") and "logits" not in stored:
        raise ReskdError("losses.logit_map_kl needs the teacher's classifier, and this cache has maps alone "
                         "(targets.logits: null): set its weight to 0, or make a cache with logits")  # fmt: skip
    if losses.reads_classes and stored["logits"]["width"] != output.logits.shape[1]:
        raise ReskdError(f"the cache has logits of {stored['logits']['width']} classes, the student of "
                         f"{output.logits.shape[1]}: both must come from one class list")  # fmt: skip


def _check_maps(maps: dict, losses: LossConfig, student_grid: list[int]) -> None:
    """Check the cache's feature maps. `maps`: their entry in the manifest; `student_grid`: [T',h,w] of the student's map."""
    cached_grid = maps["grid"]
    readers = {name: loss for name, loss in losses.used.items() if {"features", "class_map"} & {*loss.teacher}}
    check_positions(losses, cached_grid, student_grid)
    grid, whole_grid = cached_grid[1:], maps["map"][1:3]
    if grid == whole_grid:
        return
    for name, loss in readers.items():
        if not loss.reduced_grid:
            raise ReskdError(
                f"losses.{name}: the cached maps are reduced from {whole_grid[0]}×{whole_grid[1]} to {grid[0]}×{grid[1]}, which "
                f"keeps the gradient of {' and '.join(n for n, other in LOSSES.items() if other.reduced_grid)} alone: use "
                "one of them, or make a cache without targets.features.grid"
            )
    if grid != student_grid[1:]:
        raise ReskdError(
            f"losses.{' and '.join(readers)}: the cached maps are reduced to {grid[0]}×{grid[1]} for students of that "
            f"grid, but this student has the grid {student_grid[1]}×{student_grid[2]}: choose a size that gives "
            f"{grid[0]}×{grid[1]}, or make a cache without targets.features.grid, which serves every student"
        )
    if cached_grid[0] != student_grid[0]:
        raise ReskdError(
            f"losses.{' and '.join(readers)}: the cached maps are reduced to the grid {grid[0]}×{grid[1]} and have "
            f"{cached_grid[0]} times, the student's map has {student_grid[0]}: reduced maps serve students of their own times; "
            "make a cache without targets.features.grid, which serves every student"
        )


def check_positions(losses: LossConfig, teacher_grid: list[int], student_grid: list[int]) -> None:
    """Raise ReskdError if a loss compares positions, and the grids [T, h, w] of the two maps have one in common."""
    common = [min(pair) for pair in zip(teacher_grid, student_grid, strict=True)]
    for name, loss in losses.used.items():
        if loss.compares_positions and max(common) == 1:
            raise ReskdError(
                f"losses.{name} compares the positions of a map, and student and teacher have one position in common "
                f"(student [T, h, w] {student_grid}, teacher {teacher_grid}): set its weight to 0, or give the student a "
                "larger size or more frames"
            )
