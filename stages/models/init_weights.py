"""First weights of a model, from a checkpoint of this or another program."""

from __future__ import annotations

from collections.abc import Sequence

from cache.differences import first_difference
from cache.errors import ReskdError
from stages.models.checkpoints import check_fit, parse_card
from stages.models.config import InitConfig, ModelConfig
from stages.models.fit_weights import fit_to_model
from stages.models.head_norm import head_fault, pooling_fault
from stages.models.resnet_names import shifted_blocks
from stages.models.timm_maps import layout_of
from stages.models.tsm import shifting_blocks
from stages.models.video_model import VideoModel
from stages.models.weight_files import StoredWeights, read_weight_file
from stages.models.weight_names import (
    check_normalisation,
    recognise_format,
    to_our_names,
)


def initialise(model: VideoModel, config: ModelConfig, init: InitConfig, classes: Sequence[str] | None) -> str:
    """Load the checkpoint `init.path`, of this or another program, into the model of `config`.

    `classes`: the data set's class names. If the classifier is kept, they must be those of the checkpoint, if it has any.
    Returns a description of what was loaded. Raises ReskdError as `read_weight_file` and `load_stored` do.
    """
    assert init.path is not None
    return load_stored(model, config, init, read_weight_file(init.path), classes)


def load_stored(
    model: VideoModel, config: ModelConfig, init: InitConfig, stored: StoredWeights, classes: Sequence[str] | None
) -> str:
    """`initialise` with a file that is read already.

    Raises ReskdError if the file is not in `init.format`, if its network or its normalisation is another one, or if its
    classifier doesn't fit and `init.head` is "keep".
    """
    tensors, layout, names, notes = _translated(model, config, init, stored)
    tensors, inflated = fit_to_model(model, tensors)
    initial = model.state_dict()
    fresh_head = {name: initial[name] for name in initial if name.startswith("head.fc.")}
    head = {name: tensors.pop(name) for name in fresh_head if name in tensors}
    body = {name: value for name, value in initial.items() if name not in fresh_head}
    check_fit(body, tensors, init.path, f"a {config.arch} of {config.backbone}")
    kept = init.head != "drop"
    fault = _classifier_fault(head, fresh_head, names, classes) if kept else None
    if kept and fault is None:
        check_fit(fresh_head, head, init.path)  # numbers that are not finite
        fault = _fault_before_classifier(model, config, layout, head, tensors, stored)
    if fault:
        if init.head == "keep":
            part = " (its teacher)" if init.part == "teacher" else ""
            raise ReskdError(f"checkpoint {init.path}{part} {fault}, or take a fresh classifier: head: reinit where it doesn't "
                             f"fit, head: drop in any case. (The file was taken for {config.backbone})")  # fmt: skip
        kept = False
    model.load_state_dict(tensors | (head if kept else fresh_head))
    notes += ["2D weights inflated"] if inflated else []
    if stored.others:
        notes += [f"of the file the weights under {stored.key}, not those under {' and '.join(stored.others)}"]
    notes += ["its classifier" if kept else "a fresh classifier"]
    if kept and names is None and classes is not None:
        notes += ["the file names no classes, and they are taken to be in this order"]
    layout = f"{layout} ({init.part})" if layout == "rkd" else layout
    # Some networks have the same names, such as timm's resnet50, resnetaa50 and resnetblur50.
    return f"{init.path}, taken for {config.backbone}: {layout}, {len(tensors) + 2 * kept} tensors, " + ", ".join(notes)


def _translated(model: VideoModel, config: ModelConfig, init: InitConfig, stored: StoredWeights):
    """The tensors under this program's names, the format, the class names or None, and notes for people."""
    if stored.format is not None:
        return stored.tensors, stored.format, stored.classes, list(stored.notes)
    if stored.card is not None:
        card = parse_card(init.path, stored.card)
        for what in ("mean", "std"):
            check_normalisation(what, getattr(card.model, what), getattr(config, what))
        for key in ("head_norm", "pooling"):
            if (value := getattr(card.model, key)) != getattr(config, key):
                value = str(value).lower()
                raise ReskdError(f"checkpoint {init.path} has model.{key} {value}: set model.{key}: {value}")
        formats, shifted, names = ("reskd",), card.model.arch == "tsm", card.classes
    else:
        blocks = shifted_blocks(stored.tensors)
        formats, shifted, names = recognise_format(stored.tensors), bool(blocks), stored.classes
    layout = formats[0] if init.format == "auto" else init.format
    if layout not in formats:
        raise ReskdError(f"checkpoint {init.path} is not of the format {layout}: by its keys it is of "
                         f"{' or '.join(formats)}; leave format to auto")  # fmt: skip
    if init.part == "teacher" and layout != "rkd":
        raise ReskdError(
            f"part: teacher chooses from an rkd container, and {init.path} is of {layout}: leave `part` out"
        )
    if shifted and config.arch != "tsm":
        raise ReskdError(f"checkpoint {init.path} is a TSM. Its weights need the temporal shift: set model.arch to tsm, not "
                         f"{config.arch}")  # fmt: skip
    if shifted and stored.card is None and blocks != shifting_blocks(model.backbone):
        raise ReskdError(f"checkpoint {init.path} shifts the blocks {', '.join(sorted(blocks))}, and a TSM of "
                         f"{config.backbone} shifts {', '.join(sorted(shifting_blocks(model.backbone)))}: give the "
                         "backbone of the checkpoint")  # fmt: skip
    notes = ["trained without the temporal shift"] if config.arch == "tsm" and not shifted else []
    if layout == "reskd":
        return stored.tensors, layout, names, notes
    renamed = to_our_names(stored.tensors, layout, init.part, config, model.backbone)
    return renamed, layout, names, notes


def _fault_before_classifier(
    model: VideoModel, config: ModelConfig, layout: str, classifier: dict, tensors: dict, stored: StoredWeights
) -> str | None:
    """Why a network of timm has another head than the model, and how to mend it; None if their heads are the same."""
    if config.arch != "tsn" or layout not in ("timm", "torchvision"):
        return None
    if config.pooling == "own":
        return pooling_fault(model, classifier | tensors, config, stored.tensors)
    if layout_of(model.backbone) != "NCHW":
        return f"has a classifier behind the pooling of {config.backbone}: set model.pooling: own"
    norm = {name: tensor for name, tensor in tensors.items() if name.startswith("head.norm.")}
    return head_fault(model.head, classifier | norm, config, stored.tensors)


def _classifier_fault(
    head: dict, model_head: dict, names: Sequence[str] | None, classes: Sequence[str] | None
) -> str | None:
    """Why the classifier `head` of a checkpoint doesn't fit the model, and how to mend the data; None if it fits."""
    if not head:
        count = len(model_head["head.fc.weight"])
        return f"has no classifier, and the model's is for {count} classes: give a checkpoint with a classifier"
    stored, needed = (len(h["head.fc.weight"]) if "head.fc.weight" in h else 0 for h in (head, model_head))
    if stored != needed:
        return (
            f"has a classifier of {stored} classes, the model's is for {needed}: prepare the data with its class list"
        )
    if any(head[n].shape != model_head[n].shape for n in model_head if n in head) or len(head) < len(model_head):
        return "has a classifier of another shape or without a bias: give another checkpoint"
    if names is not None and classes is not None and tuple(names) != tuple(classes):
        difference = first_difference(names, classes, ("in the checkpoint", "in the data set"))
        return f"has other classes or another order ({difference}): prepare the data with its order (prepare --class-order FILE)"
    return None
