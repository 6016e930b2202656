"""Converts a checkpoint of another program, for `cache-teacher`, `evaluate` and `train-student`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.store import make_folders
from cache.view import ViewPolicy
from stages.config.json_result import check_writable
from stages.import_checkpoint.config import ImportConfig
from stages.import_checkpoint.transformers_folder import is_transformers, open_transformers
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.models.config import InitConfig, ModelConfig
from stages.models.head_norm import has_head_norm
from stages.models.init_weights import load_stored
from stages.models.swin import ATTENTION
from stages.models.timm_maps import layout_of
from stages.models.torchvision_video import TRAINED
from stages.models.transformers_families import FAMILIES
from stages.models.video_model import VideoModel, model_stats
from stages.models.weight_files import StoredWeights, read_weight_file
from stages.models.weight_names import recognise_format
from stages.remote.outputs import written_at
from stages.runtime.terminal import console
from stages.shards.classes import read_classes

# Frames from one frame of a clip to the next, in upstream's configs. The other architectures take segments.
STRIDES = {"slowonly": 8, "swin": 2}
STRIDES |= {
    "r2plus1d_18": 2,
    "r3d_18": 2,
    "mc3_18": 2,
    "s3d": 2,
    "mvit_v2_s": 4,
}  # torchvision's frame rates, of 30 a second
CLASSIFIERS = ("cls_head.fc_cls.weight", "fc.weight", "head.weight", "head.fc.weight", "classifier.weight",
               "new_fc.weight", "base_model.fc.weight", "blocks.5.proj.weight", "head.1.weight",
               "classifier.1.weight")  # fmt: skip
PYTORCHVIDEO = (0.45,) * 3, (0.225,) * 3  # mean and std of RGB


def import_checkpoint(config: ImportConfig) -> ModelCard:
    """Read `config.source`, check it against `config.model`, write `config.output`. Returns the card of the new file.

    Raises ReskdError if the output exists already, if the class names are unknown, or if anything doesn't fit.
    """
    if config.output.exists():
        raise ReskdError(f"{config.output} exists already: move it away, or give another output")
    if not isinstance(config.output, Path):
        check_writable(config.output)
    if is_transformers(config.source):
        config, stored = open_transformers(config)
    else:
        stored = read_weight_file(config.source)
    if config.model is None:
        raise ReskdError(f"{config.source} is a file of weights alone, which names no network: give --model (a name that "
                         "`pipeline.py models` lists), or model.arch, model.backbone and model.args")  # fmt: skip
    if stored.card is not None:
        raise ReskdError(f"{config.source} is a checkpoint of this program already: use it as it is")
    classes = _class_names(config, stored)
    model_config = config.model.model_copy(update={"num_classes": len(classes)})
    model = build_model(model_config)
    if config.head != "drop" and stored.format is None:
        found = _own_head(model, model_config)
        if found:
            model_config = model_config.model_copy(update=found)
            model = build_model(model_config)
    policy = config.eval_policy or default_policy(model_config, spread=stored.mmaction2_1x)
    if policy.num_frames != model_config.num_frames:  # a folder has said the model's
        raise ReskdError(f"eval_policy.num_frames {policy.num_frames} and model.num_frames {model_config.num_frames} must be "
                         "equal")  # fmt: skip
    init = InitConfig(path=config.source, format=config.format, part=config.part, head=config.head)
    description = load_stored(model, model_config, init, stored, classes)
    model_stats(model, config.size)  # raises if it can't see pictures of this size
    card = ModelCard(model_config, classes, config.size, config.render_via, policy, {"imported": config.source.name})
    with written_at(config.output) as file:
        make_folders(file.parent)
        save_model(file, model, card)
    views = policy.sampling if policy.sampling == "segments" else f"{policy.sampling}, stride {policy.stride}"
    console.print(f"{description}\n{config.output}: {config.model.arch} {config.model.backbone}, {len(classes)} classes, "
                  f"{config.size} px, {config.model.num_frames} frames ({views}), crop {policy.crop}",
                  markup=False, soft_wrap=True)  # fmt: skip
    for warning in _warnings(config, stored, model):
        console.print(f"[yellow]warning[/] {warning}", soft_wrap=True)
    return card


def _own_head(model: VideoModel, config: ModelConfig) -> dict[str, Any]:
    """What stands before the classifier in files of this network, as keys of the model: a norm, or its own pooling."""
    if has_head_norm(model.backbone) and config.pooling == "mean":
        return {"head_norm": True}
    if layout_of(model.backbone) != "NCHW" or getattr(model.backbone, "pools", False):
        return {"pooling": "own"}
    return {}


def _warnings(config: ImportConfig, stored: StoredWeights, model: VideoModel) -> Iterator[str]:
    """Settings that no checkpoint stores, and that would be wrong in silence."""
    if stored.format is not None:
        return
    layout = recognise_format(stored.tensors)
    mean, std, size = _trained_on(layout, config.model, model)
    if (config.model.mean, config.model.std) != (mean, std):
        yield ("the file's networks saw other pixels than model.mean and model.std say: import it with --set "
               f"model.mean=[{','.join(map(str, mean))}] --set model.std=[{','.join(map(str, std))}]")  # fmt: skip
    if size not in (None, config.size):
        yield f"torchvision's {config.model.backbone} saw {size} px: import it with --size {size}"
    if layout == ("rkd",) and config.part == "student" and config.render_via is None:
        yield ("upstream's students saw 112 px, shrunk from 224 without antialiasing: import it with --size 112 "
               "--set render_via=224")  # fmt: skip
    if config.model.arch == "swin" and config.model.rel_pos == "exact":
        window = next(m.window_size for m in model.modules() if isinstance(m, ATTENTION["exact"]))[1:]
        grid = list(model_stats(model, config.size).grid[1:])
        if any(map_side < window_side for map_side, window_side in zip(grid, window, strict=True)):
            yield (f"at {config.size} px its map of {'×'.join(map(str, grid))} is smaller than its window, and other "
                   "programs then take wrong position biases: if it was trained at this size, import it with "
                   "--set model.rel_pos=upstream")  # fmt: skip


def _trained_on(layout: tuple[str, ...], config: ModelConfig, model: VideoModel) -> tuple[tuple, tuple, int | None]:
    """mean and std of the pixels, and the size, that published files of this network were trained on, where that is known;
    else mean and std of `config`, and None."""
    if layout == ("pytorchvideo",):
        return *PYTORCHVIDEO, None
    if config.arch == "torchvision_video":
        return TRAINED[config.backbone]
    if layout == ("timm",) and config.arch == "tsn":
        described = model.backbone.pretrained_cfg
        return tuple(described["mean"]), tuple(described["std"]), None
    return config.mean, config.std, None


def default_policy(model: ModelConfig, spread: bool) -> ViewPolicy:
    """The middle frame of each segment, or the middle clip with a stride; the centre crop; no mirrored views.

    `spread`: several clips of a test go from end to end of the video, as in mmaction2 1.x.
    """
    sampling = "dense_1x" if spread else "dense"
    stride = STRIDES.get(model.arch) or (STRIDES.get(model.backbone) if model.arch == "torchvision_video" else None)
    if model.arch == "transformers" and FAMILIES[model.backbone].video:
        stride = FAMILIES[model.backbone].stride
    dense = {"sampling": sampling, "stride": stride} if stride else {}
    return ViewPolicy(num_frames=model.num_frames, jitter=False, crop="center", flip=0.0, **dense)


def _class_names(config: ImportConfig, stored: StoredWeights) -> tuple[str, ...]:
    """The names of `config.classes`, or else of the checkpoint. Raises ReskdError if neither has names."""
    given = read_classes(config.classes)
    if given is None and stored.classes is None:
        rows = [len(stored.tensors[name]) for name in CLASSIFIERS if name in stored.tensors]
        raise ReskdError(f"{config.source} doesn't name its {f'{rows[0]} ' if rows else ''}classes, and data must have "
                         "the same names in the same order: give them by --class-order FILE (one name per line, or a "
                         "prepared data set)")  # fmt: skip
    names = given or read_classes(stored.classes)
    if config.model.num_classes not in (None, len(names)):
        origin = config.source if given is None else config.classes
        raise ReskdError(f"model.num_classes is {config.model.num_classes}, and {origin} has {len(names)} classes: leave "
                         "model.num_classes out")  # fmt: skip
    return names
