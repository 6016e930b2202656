"""TSN (Wang et al. 2016, "Temporal Segment Networks"): a 2D network of timm on each frame; the head averages."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

import timm
from timm.models.resnet import ResNet
from torch import nn

from cache.errors import ReskdError
from stages.models.timm_maps import set_layout, size_arguments

# Those that load weights from files and addresses: a checkpoint's own description may name arguments, too.
LOADING_ARGUMENTS = inspect.signature(timm.create_model).parameters.keys() - {"kwargs"}

NOTED = ("map_layout", "pooled_features", "pooling_only")  # what `set_layout` notes on a network
_LAYOUTS: dict[str, tuple[list[str], dict[str, Any]]] = {}  # what it found, by network and arguments

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig


def build_backbone(config: ModelConfig, pretrained: bool) -> nn.Module:
    """A network of timm without its classifier. `timm_maps.encode_frames` gives its maps.

    A transformer takes pictures of any size where timm has an argument for it. Parameters that the classifier doesn't
    depend on, such as MobileNetV3's `conv_head`, are frozen.

    Raises:
        ReskdError: timm has no such network or refuses an argument, the pretrained weights can't be loaded, or the
            network returns no map.
    """
    net = _create(config)
    sizes = {} if isinstance(net, ResNet) else size_arguments(net, config.args)
    if sizes:
        config = config.model_copy(update={"args": config.args | sizes})
        net = _create(config)
    own = config.pooling == "own"
    unused, noted = ([], {}) if isinstance(net, ResNet) and not own else _known_layout(net, config, own)
    if pretrained:
        net = _create_pretrained(config)
    for name, value in noted.items():
        setattr(net, name, value)
    for name in unused:
        net.get_parameter(name).requires_grad_(False)  # or DistributedDataParallel waits for a gradient
    return net


def _known_layout(net: nn.Module, config: ModelConfig, own: bool) -> tuple[list[str], dict[str, Any]]:
    """What `set_layout` returns, and what it notes on a network. It takes half a second, and a sweep builds many students: it
    is found once a process for each network."""
    key = f"{config.backbone} {timm_arguments(config)} {own}"
    if key not in _LAYOUTS:
        unused = set_layout(net, config.backbone, own)
        _LAYOUTS[key] = unused, {name: getattr(net, name) for name in NOTED if hasattr(net, name)}
    return _LAYOUTS[key]


def build_resnet(config: ModelConfig, pretrained: bool) -> ResNet:
    """A ResNet of timm.

    Raises:
        ReskdError: as `build_backbone`, or the network is no ResNet.
    """
    net = _create(config, module="resnet")
    if not isinstance(net, ResNet):
        raise ReskdError(
            f"backbone {config.backbone!r} is a {type(net).__name__}, and arch {config.arch} needs a ResNet: "
            "choose a ResNet such as 'resnet50', or arch tsn"
        )
    return _create_pretrained(config) if pretrained else net


def timm_arguments(config: ModelConfig) -> dict:
    """The arguments for `timm.create_model`. YAML's lists become tuples."""
    if "drop_path_rate" in config.args:
        raise ReskdError(f"model.args has drop_path_rate {config.args['drop_path_rate']}: give it as model.drop_path")
    if loading := sorted(config.args.keys() & LOADING_ARGUMENTS):
        raise ReskdError(
            f"model.args has {loading[0]}: only arguments of the network itself; weights come from init.path"
        )
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in config.args.items()}
    if config.drop_path:
        args["drop_path_rate"] = config.drop_path
    # Its own pooling needs the layers that a network without pooling doesn't have.
    return {"num_classes": 0, **({} if config.pooling == "own" else {"global_pool": ""}), **args}


def _create(config: ModelConfig, module: str = "") -> nn.Module:
    """`module`: of timm, from which other names are suggested."""
    name, args = config.backbone, timm_arguments(config)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(module=module), n=3, cutoff=0.5)
        raise ReskdError(
            f"backbone {name!r} is not a model of timm {timm.__version__}; try {', '.join(near) or 'resnet50'}"
        )
    try:
        return timm.create_model(name, pretrained=False, **args)
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError, LookupError) as error:
        raise ReskdError(
            f"timm can't build the backbone {name!r} with args {config.args} and drop_path {config.drop_path}: "
            f"{error}; correct `args`"
        ) from error


def _create_pretrained(config: ModelConfig) -> nn.Module:
    try:  # all reasons (network, disk, other widths) have the same remedy
        return timm.create_model(config.backbone, pretrained=True, **timm_arguments(config))
    except Exception as error:
        raise ReskdError(
            f"timm's pretrained weights of the backbone {config.backbone!r} (args {config.args}) can't be loaded: "
            f"{type(error).__name__}: {error}; without a network, download them on another machine and copy its Hugging "
            "Face cache (HF_HOME), or start from a local checkpoint (init.path), or set init.source: scratch"
        ) from error
