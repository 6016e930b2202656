"""A checkpoint of another program becomes one of ours, for `cache-teacher`, `evaluate` and `train-student`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cache.errors import ReskdError
from cache.store import make_folders
from cache.view import ViewPolicy
from stages.import_checkpoint.config import ImportConfig
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.models.config import InitConfig, ModelConfig
from stages.models.init_weights import load_stored
from stages.models.swin import ATTENTION
from stages.models.video_model import VideoModel, model_stats
from stages.models.weight_files import StoredWeights, read_weight_file
from stages.models.weight_names import recognise_format
from stages.runtime.log import console
from stages.shards.classes import read_classes

STRIDES = {"slowonly": 8, "swin": 2}  # frames between those of a clip, in the seed's configs; the others take segments
CLASSIFIERS = ("cls_head.fc_cls.weight", "fc.weight", "head.weight", "head.fc.weight", "classifier.weight")


def import_checkpoint(config: ImportConfig) -> ModelCard:
    """Read `config.source`, check it against the model that it is said to be, write `config.output`; returns its card.

    Raises ReskdError where OUT is there already, the class names are unknown, or anything doesn't fit.
    """
    if config.output.exists():
        raise ReskdError(f"{config.output} is there already: move it away, or give another output")
    stored = read_weight_file(config.source)
    if stored.card is not None:
        raise ReskdError(f"{config.source} is a checkpoint of this program already: use it as it is")
    classes = _class_names(config, stored)
    net = config.model.model_copy(update={"num_classes": len(classes)})
    model = build_model(net)
    init = InitConfig(path=config.source, format=config.format, part=config.part, head=config.head)
    said = load_stored(model, net, init, stored, classes)
    policy = config.eval_policy or default_policy(net)
    card = ModelCard(net, classes, config.size, config.render_via, policy, {"imported": config.source.name})
    make_folders(config.output.parent)
    save_model(config.output, model, card)
    views = f"dense, stride {policy.stride}" if policy.sampling == "dense" else policy.sampling
    console.print(f"{said}\n{config.output}: {net.arch} {net.backbone}, {len(classes)} classes, {config.size} px, "
                  f"{net.num_frames} frames ({views}), crop {policy.crop}", markup=False, soft_wrap=True)  # fmt: skip
    for doubt in _doubts(config, stored, model):
        console.print(f"[yellow]warning[/] {doubt}", soft_wrap=True)
    return card


def _doubts(config: ImportConfig, stored: StoredWeights, model: VideoModel) -> Iterator[str]:
    """What no file says of itself, and would be evaluated wrongly without a word."""
    if recognise_format(stored.tensors) == ("rkd",) and config.part == "student" and config.render_via is None:
        yield ("the seed's students saw 112 px, shrunk from 224 without antialiasing: import it with --size 112 "
               "--set render_via=224")  # fmt: skip
    if config.model.arch == "swin" and config.model.rel_pos == "exact":
        window = next(m.window_size for m in model.modules() if isinstance(m, ATTENTION["exact"]))[1:]
        grid = list(model_stats(model, config.size).grid[1:])
        if any(side < whole for side, whole in zip(grid, window, strict=True)):
            yield (f"at {config.size} px its map of {'×'.join(map(str, grid))} is smaller than its window, where other "
                   "programs take wrong position biases: if it was trained at this size, import it with "
                   "--set model.rel_pos=upstream")  # fmt: skip


def default_policy(model: ModelConfig) -> ViewPolicy:
    """Middle frames of segments, or the middle clip of frames some stride apart; the centre crop, nothing mirrored."""
    dense = {"sampling": "dense", "stride": STRIDES[model.arch]} if model.arch in STRIDES else {}
    return ViewPolicy(num_frames=model.num_frames, jitter=False, crop="center", flip=0.0, **dense)


def _class_names(config: ImportConfig, stored: StoredWeights) -> tuple[str, ...]:
    """Those of `config.classes`, else the checkpoint's own."""
    given, own = read_classes(config.classes), stored.classes
    if given is None and own is None:
        rows = [len(stored.tensors[name]) for name in CLASSIFIERS if name in stored.tensors]
        raise ReskdError(f"{config.source} doesn't name its {f'{rows[0]} ' if rows else ''}classes, and data must have "
                         f"the same names in the same order: give them by --class-order FILE "
                         f"(one name a line, or a prepared data set)")  # fmt: skip
    names = given or read_classes(own)
    if config.model.num_classes not in (None, len(names)):
        raise ReskdError(f"model.num_classes is {config.model.num_classes}, and {_origin(config, given)} has "
                         f"{len(names)} classes: leave it out")  # fmt: skip
    return names


def _origin(config: ImportConfig, given: tuple[str, ...] | None) -> Path:
    return config.source if given is None else config.classes
