"""Networks of Hugging Face's transformers, built from the JSON of their config alone. Their weights keep the library's names.

A network for images sees each frame alone. `transformers` is imported when such a network is built, and not before.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.models.timm_maps import mean_over_frames, note_pooling, unused_parameters
from stages.models.transformers_families import FAMILIES, Family, patch_side, tubelet_length
from stages.models.video_model import Encoded

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig

# A checkpoint's own description asks for these: a network of a billion layers would be tried for hours.
LARGEST, MOST_LAYERS, MOST_POSITIONS, MOST_PARAMETERS = 1 << 16, 256, 1 << 16, 10**10
NO_LIBRARY = "transformers is not installed: run `uv run --extra hf pipeline.py ...`"
NOT_ARGS = ("_out_features", "_out_indices", "apply_layernorm", "reshape_hidden_states")  # of the library's backbones


def build_transformers(config: ModelConfig, pretrained: bool) -> nn.Module:
    """The network `config.backbone`, a `model_type`, of the config `config.args`, without its classifier.

    With `pooling: own` it is the library's class with a classifier, of which all but the last layer is kept.

    Raises:
        ReskdError: transformers is not installed, the network isn't known, its config can't be, is too large or is of
            another number of frames, or `pretrained` is set.
    """
    family = family_of(config.backbone)
    if pretrained:
        raise ReskdError(f"init.source: timm has no weights of transformers: import {config.backbone} from its folder "
                         "(import-checkpoint), and give the file as init.path")  # fmt: skip
    own = config.pooling == "own"
    if own and family.classifier is None:
        raise ReskdError(f"model.pooling: own: transformers has no {config.backbone} with a classifier: set it to mean")
    settings = net_config(config)
    name = family.classifier if own else family.encoder
    try:
        with torch.device("meta"):
            shapes = make_net(name, settings)
        count = sum(parameter.numel() for parameter in shapes.parameters())
        if count > MOST_PARAMETERS:
            raise ReskdError(f"model.args asks for {count:.1e} parameters, the limit is {MOST_PARAMETERS:.0e}")
        net = make_net(name, settings)
    except ReskdError:
        raise
    except Exception as error:  # of the library: wrong values, or no memory
        raise _cannot_build(config.backbone, error) from error
    _find_widths(net, shapes, config.num_frames, own)
    return net


def family_of(name: str) -> Family:
    if name not in FAMILIES:
        raise ReskdError(
            f"backbone {name!r} is no network of transformers that is known here: it has {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def library() -> ModuleType:
    """The package transformers. Raises ReskdError if it isn't installed."""
    try:
        import transformers
    except ImportError as error:
        raise ReskdError(NO_LIBRARY) from error
    return transformers


def make_net(name: str, settings: Any) -> nn.Module:
    """A network of the class `name`, without its classifier and what only other tasks need."""
    kind = getattr(library(), name)
    extra = {"add_pooling_layer": False} if name in ("ViTModel", "DeiTModel", "VivitModel") else {}
    net = kind(settings, **extra)
    if hasattr(net, "classifier"):
        net.classifier = nn.Identity()
    for module in (net, getattr(net, "vjepa2", None)):
        if getattr(module, "predictor", None) is not None:
            module.predictor = None
    return net


def net_config(config: ModelConfig) -> Any:
    """The library's config of `config.args`, without classes. Raises ReskdError for unknown keys and values without sense."""
    family, given = family_of(config.backbone), dict(config.args)
    kind = config_class(config.backbone)
    known = config_keys(kind)
    if unknown := sorted(given.keys() - known):
        raise ReskdError(f"model.args.{unknown[0]} is no key of {kind.__name__}; known: {', '.join(sorted(known))}")
    for key, value in given.items():
        _check_size(key, value)
    try:
        settings = kind(**given)
    except Exception as error:
        raise _cannot_build(config.backbone, error) from error
    frames = getattr(settings, family.fixed_frames) if family.fixed_frames else config.num_frames
    if frames != config.num_frames:
        raise ReskdError(f"{config.backbone} has positions for {frames} frames: set model.num_frames={frames}")
    if config.num_frames % tubelet_length(settings):
        raise ReskdError(f"model.num_frames {config.num_frames} must be a multiple of {tubelet_length(settings)}, the frames "
                         f"of a tubelet of {config.backbone}")  # fmt: skip
    if getattr(settings, "attention_type", None) == "space_only":
        raise ReskdError("a timesformer with attention_type space_only gives no map of a clip: take another network")
    size = getattr(settings, "image_size", getattr(settings, "crop_size", 0))
    side = (max(size) if isinstance(size, list | tuple) else size) // patch_side(settings)
    if side**2 * config.num_frames > MOST_POSITIONS * 16:
        raise ReskdError(f"model.args.image_size {size}: {side**2} positions of a frame are too many")
    if config.drop_path:
        raise ReskdError(
            f"model.drop_path {config.drop_path}: give it as model.args.drop_path_rate, if {config.backbone} has it"
        )
    return settings


def config_class(name: str) -> type:
    """The library's class of configs of a `model_type`."""
    return getattr(library(), family_of(name).encoder).config_class


def config_keys(kind: type) -> set[str]:
    """The keys that describe a network, and nothing about files, classes or how it is run."""
    base = {field.name for field in dataclasses.fields(library().PreTrainedConfig)}
    return {field.name for field in dataclasses.fields(kind)} - base - set(NOT_ARGS)


def _check_size(key: str, value: Any) -> None:
    numbers = value if isinstance(value, list | tuple) else [value]
    limit = MOST_LAYERS if "layers" in key or key == "depths" else LARGEST
    if len(numbers) > MOST_LAYERS or any(isinstance(n, int | float) and not -1000 <= n <= limit for n in numbers):
        raise ReskdError(f"model.args.{key} {str(value)[:60]} is too large: the limit is {limit}")
    if key.endswith(("patch_size", "tubelet_size", "image_size", "crop_size")) and any(n in (0, None) for n in numbers):
        raise ReskdError(f"model.args.{key} {value} must be above 0")
    if any(isinstance(n, dict | list | tuple) for n in numbers):
        raise ReskdError(f"model.args.{key} is no number, text or list of numbers")


def _cannot_build(name: str, error: Exception) -> ReskdError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ReskdError(f"transformers can't build a {name} of these model.args: {reason[:500]}; correct `args`")


def _find_widths(net: nn.Module, shapes: nn.Module, frames: int, own: bool) -> None:
    """Note `num_features` and `pooled_features` on `net`, and freeze what neither the map nor the classifier depends on."""
    size = getattr(net.config, "image_size", getattr(net.config, "crop_size", 224))
    size = size if isinstance(size, list | tuple) else (size, size)
    clips = torch.empty(1, frames, 3, *size, device="meta")
    try:
        unused, (maps,) = unused_parameters(shapes.eval(), lambda: [encode_transformers(shapes, clips)])
        if own:
            unused = note_pooling(net, shapes, lambda: encode_transformers_pooled(shapes, clips))
    except Exception as error:
        raise _cannot_build(net.config.model_type, error) from error
    net.num_features = maps.shape[-1]
    for name in unused:
        net.get_parameter(name).requires_grad_(False)  # or DistributedDataParallel waits for a gradient


def encode_transformers(net: nn.Module, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T', h, w, D], without class and register tokens."""
    return _encode(net, clips)[0]


def encode_transformers_pooled(net: nn.Module, clips: Tensor) -> Encoded:
    """The map, and what the library's own classifier takes: for images the mean over the frames."""
    maps, output = _encode(net, clips)
    family = FAMILIES[net.config.model_type]
    pooled = family.pool(net, output)
    return Encoded(maps, pooled if family.video else mean_over_frames(pooled, clips))


def _encode(net: nn.Module, clips: Tensor) -> tuple[Tensor, Any]:
    """The map, and the output of the library's encoder."""
    family = FAMILIES[net.config.model_type]
    encoder = net if type(net).__name__ == family.encoder else getattr(net, family.inner)
    pixels = clips if family.video else clips.flatten(0, 1)
    grid = (clips.shape[1] if family.video else 1, *clips.shape[3:])
    family.set_grid(net, grid)
    output = encoder(pixels, **family.options)
    maps = family.to_map(net.config, output.last_hidden_state, grid)
    return (maps if family.video else maps[:, 0].unflatten(0, clips.shape[:2])), output
