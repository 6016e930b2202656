"""Checkpoints: one safetensors file with the weights and all that later stages need to know about the model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save as to_bytes

from cache.differences import first_difference
from cache.errors import ReskdError
from cache.store import write_atomically
from cache.view import ViewPolicy
from stages.models.architectures import build_model
from stages.models.config import InitConfig, ModelConfig
from stages.models.video_model import VideoModel
from stages.models.weight_files import StoredWeights, read_safetensors, read_weight_file
from stages.models.weight_names import (
    check_normalisation,
    fit_to_model,
    has_temporal_shift,
    recognise_format,
    to_our_names,
)

FORMAT = 1
LISTED = 12  # weights that don't fit, in one message


@dataclass(frozen=True)
class ModelCard:
    """The description of a model in its checkpoint."""

    model: ModelConfig
    classes: tuple[str, ...]
    size: int
    render_via: int | None
    eval_policy: ViewPolicy
    notes: dict = field(default_factory=dict)  # for people: epoch, accuracy; no code depends on them


def save_model(path: Path, model: torch.nn.Module, card: ModelCard) -> None:
    """Write the weights of `model` and `card` into one file, atomically."""
    meta = {**asdict(card), "model": card.model.model_dump(mode="json"), "format": FORMAT}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, to_bytes(tensors, metadata={"reskd": json.dumps(meta)}))


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """The tensors and the card of a file that `save_model` wrote.

    Raises ReskdError if the file doesn't exist, is damaged, or was written by another program or in another format.
    """
    if not os.path.isfile(path):
        raise ReskdError(f"checkpoint {path} does not exist; give a .safetensors that train-student wrote")
    tensors, metadata = read_safetensors(path)
    return tensors, _card(path, metadata.get("reskd"))


def _card(path: Path, text: str | None) -> ModelCard:
    try:
        meta = json.loads(text or "null")
    except json.JSONDecodeError as error:
        raise ReskdError(
            f"checkpoint {path} can't be read: its model description is no JSON ({error}); copy the file again"
        ) from error
    if not isinstance(meta, dict):
        raise ReskdError(f"checkpoint {path} has no model description; give a .safetensors that train-student or "
                         "import-checkpoint wrote")  # fmt: skip
    if meta.get("format") != FORMAT:
        raise ReskdError(f"checkpoint {path} has format {meta.get('format')}, and this version reads format {FORMAT}")
    try:
        return ModelCard(
            model=ModelConfig.model_validate(meta["model"]),
            classes=tuple(meta["classes"]),
            size=meta["size"],
            render_via=meta["render_via"],
            eval_policy=ViewPolicy(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in meta["eval_policy"].items()}
            ),
            notes=meta["notes"],
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ReskdError(f"checkpoint {path}: its model description is incomplete: {error}") from error


def load_model(path: Path) -> tuple[VideoModel, ModelCard]:
    """The model of a checkpoint, in eval mode on the CPU."""
    tensors, card = read_checkpoint(path)
    model = build_model(card.model)
    load_weights(model, tensors, path)
    return model.eval(), card


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load `tensors` into `model`; `path` is named in errors.

    Raises ReskdError that lists up to LISTED weights that are missing, unexpected, of another shape or not finite.
    """
    _refuse_misfits(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)


def _refuse_misfits(wanted: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], path: Path) -> None:
    """ReskdError if `tensors` of the checkpoint don't fit the state dict `wanted` of the model."""
    missing = sorted(f"missing {name}" for name in wanted.keys() - tensors.keys())
    unexpected = sorted(f"unexpected {name}" for name in tensors.keys() - wanted.keys())
    others = []
    for name in sorted(wanted.keys() & tensors.keys()):
        stored, needed = tensors[name], wanted[name]
        if stored.shape != needed.shape:
            others.append(f"{name}: the checkpoint has shape {list(stored.shape)}, the model {list(needed.shape)}")
        elif stored.is_floating_point() != needed.is_floating_point():
            others.append(f"{name}: the checkpoint has {stored.dtype}, the model {needed.dtype}")
        elif not stored.isfinite().all():
            others.append(f"{name} holds numbers that are not finite")
    kinds = [faults for faults in (missing, unexpected, others) if faults]
    if kinds:
        # Show some of each kind: missing and unexpected names side by side reveal a prefix or another network.
        shown = [fault for faults in kinds for fault in faults[: LISTED // len(kinds)]]
        more = sum(map(len, kinds)) - len(shown)
        lines = shown + ([f"and {more} more"] if more else [])
        raise ReskdError(f"checkpoint {path} doesn't fit the model:\n  " + "\n  ".join(lines))


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
    _refuse_misfits({name: value for name, value in initial.items() if name not in fresh_head}, tensors, init.path)
    kept = init.head != "drop"
    if kept and (fault := _classifier_fault(head, fresh_head, names, classes)):
        if init.head == "keep":
            part = " (its teacher)" if init.part == "teacher" else ""
            raise ReskdError(f"checkpoint {init.path}{part} {fault}, or take a fresh classifier: head: reinit where it doesn't "
                             "fit, head: drop in any case")  # fmt: skip
        kept = False
    model.load_state_dict(tensors | (head if kept else fresh_head))
    notes += ["2D weights inflated"] if inflated else []
    notes += [f"the averaged weights ({stored.averaged}) in the file not taken"] if stored.averaged else []
    notes += ["its classifier" if kept else "a fresh classifier"]
    if kept and names is None and classes is not None:
        notes += ["the file names no classes, and they are taken to be in this order"]
    return f"{init.path}: {layout}, {len(tensors) + 2 * kept} tensors, " + ", ".join(notes)


def _translated(model: VideoModel, config: ModelConfig, init: InitConfig, stored: StoredWeights):
    """The tensors under this program's names, the format, the class names or None, and notes for people."""
    if stored.card is not None:
        card = _card(init.path, stored.card)
        for what in ("mean", "std"):
            check_normalisation(what, getattr(card.model, what), getattr(config, what))
        formats, shifted, names = ("reskd",), card.model.arch == "tsm", card.classes
    else:
        formats, shifted, names = recognise_format(stored.tensors), has_temporal_shift(stored.tensors), stored.classes
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
    notes = ["trained without the temporal shift"] if config.arch == "tsm" and not shifted else []
    if layout == "reskd":
        return stored.tensors, layout, names, notes
    renamed = to_our_names(stored.tensors, layout, init.part, config, model.backbone)
    return renamed, f"{layout} ({init.part})" if layout == "rkd" else layout, names, notes


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


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes, dtypes and values of all weights. It doesn't depend on the file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
