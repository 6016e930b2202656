"""Weights on disk: one safetensors file that carries all a later stage must know of its model."""

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
from stages.models.other_formats import check_normalisation, fit, has_shift, recognise, to_ours
from stages.models.torchfile import Stored, read_file, read_safetensors
from stages.models.video_model import VideoModel

FORMAT = 1
LISTED = 12  # lines of a message about keys that don't fit


@dataclass(frozen=True)
class ModelCard:
    """What a file of weights says of itself."""

    model: ModelConfig
    classes: tuple[str, ...]
    size: int
    render_via: int | None
    eval_policy: ViewPolicy
    notes: dict = field(default_factory=dict)  # epoch, accuracy: for people, never acted on


def save_model(path: Path, model: torch.nn.Module, card: ModelCard) -> None:
    """Write `model`'s weights and `card` atomically."""
    meta = {**asdict(card), "model": card.model.model_dump(mode="json"), "format": FORMAT}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, to_bytes(tensors, metadata={"reskd": json.dumps(meta)}))


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """The tensors and the card of a file that `save_model` wrote.

    Raises ReskdError where it isn't there, is damaged, or is of another program or format.
    """
    if not os.path.isfile(path):
        raise ReskdError(f"checkpoint {path} does not exist; give a .safetensors that train-student wrote")
    tensors, metadata = read_safetensors(path)
    return tensors, _card(path, metadata.get("reskd"))


def _card(path: Path, text: str | None) -> ModelCard:
    try:
        meta = json.loads(text or "null")
    except json.JSONDecodeError as error:
        raise ReskdError(f"checkpoint {path} can't be read: its model description is no JSON ({error})") from error
    if not isinstance(meta, dict):
        raise ReskdError(f"checkpoint {path} has no model description; give a .safetensors that train-student or "
                         "import-checkpoint wrote")  # fmt: skip
    if meta.get("format") != FORMAT:
        raise ReskdError(f"checkpoint {path} has format {meta.get('format')}, this version reads {FORMAT}")
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
    """Strict: missing, unexpected, mis-shaped or not finite weights are listed in the ReskdError, LISTED of them."""
    _refuse_misfits(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)


def _refuse_misfits(own: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], path: Path) -> None:
    missing = sorted(f"missing {name}" for name in own.keys() - tensors.keys())
    unexpected = sorted(f"unexpected {name}" for name in tensors.keys() - own.keys())
    others = []
    for name in sorted(own.keys() & tensors.keys()):
        there, here = tensors[name], own[name]
        if there.shape != here.shape:
            others.append(f"{name} is {list(there.shape)} there and {list(here.shape)} here")
        elif there.is_floating_point() != here.is_floating_point():
            others.append(f"{name} is {there.dtype} there and {here.dtype} here")
        elif not there.isfinite().all():
            others.append(f"{name} holds numbers that are not finite")
    kinds = [faults for faults in (missing, unexpected, others) if faults]
    if kinds:
        # Some of each kind: what is missing, beside what is there instead, tells a prefix or another net.
        shown = [fault for faults in kinds for fault in faults[: LISTED // len(kinds)]]
        more = sum(map(len, kinds)) - len(shown)
        lines = shown + ([f"and {more} more"] if more else [])
        raise ReskdError(f"checkpoint {path} doesn't fit the model:\n  " + "\n  ".join(lines))


def initialise(model: VideoModel, config: ModelConfig, init: InitConfig, classes: Sequence[str] | None) -> str:
    """Load the checkpoint `init.path`, whoever wrote it, into the model of `config`; returns what was done, for people.

    `classes`: names of the data set's, to compare with the checkpoint's where it has them and its classifier is kept.
    Raises ReskdError as `read_file` does, and where anything doesn't fit: see `load_stored`.
    """
    assert init.path is not None
    return load_stored(model, config, init, read_file(init.path), classes)


def load_stored(
    model: VideoModel, config: ModelConfig, init: InitConfig, stored: Stored, classes: Sequence[str] | None
) -> str:
    """`initialise` with what is read already.

    Raises ReskdError where the format isn't `init.format`, the net is another one (keys that are missing, unexpected or
    mis-shaped are listed), its normalisation is, or the classifier doesn't fit and `init.head` keeps it.
    """
    tensors, layout, names, notes = _as_ours(model, config, init, stored)
    tensors, inflated = fit(model, tensors)
    own = model.state_dict()
    mine = {name: own[name] for name in own if name.startswith("head.fc.")}
    head = {name: tensors.pop(name) for name in mine if name in tensors}
    _refuse_misfits({name: value for name, value in own.items() if name not in mine}, tensors, init.path)
    kept = init.head != "drop"
    if kept and (why := _why_not(head, mine, names, classes)):
        if init.head == "keep":
            whose = " (its teacher)" if init.part == "teacher" else ""
            raise ReskdError(f"checkpoint {init.path}{whose} {why}, or take a fresh classifier: head: reinit where it doesn't "
                             "fit, head: drop in any case")  # fmt: skip
        kept = False
    model.load_state_dict(tensors | (head if kept else mine))
    notes += ["2D weights inflated"] if inflated else []
    notes += [f"the averaged weights beside them ({stored.averaged}) not taken"] if stored.averaged else []
    notes += ["its classifier" if kept else "a fresh classifier"]
    if kept and names is None and classes is not None:
        notes += ["whose classes are taken to be in this order, as the file doesn't name them"]
    return f"{init.path}: {layout}, {len(tensors) + 2 * kept} tensors, " + ", ".join(notes)


def _as_ours(model: VideoModel, config: ModelConfig, init: InitConfig, stored: Stored):
    """Tensors under our names, the format, class names where they are known, and what else is worth saying."""
    if stored.card is not None:
        card = _card(init.path, stored.card)
        for what in ("mean", "std"):
            check_normalisation(what, getattr(card.model, what), getattr(config, what))
        found, shifted, names = ("reskd",), card.model.arch == "tsm", card.classes
    else:
        found, shifted, names = recognise(stored.tensors), has_shift(stored.tensors), stored.classes
    layout = found[0] if init.format == "auto" else init.format
    if layout not in found:
        raise ReskdError(f"checkpoint {init.path} is not of the format {layout}: by its keys it is of "
                         f"{' or '.join(found)}; leave format to auto")  # fmt: skip
    if init.part == "teacher" and layout != "rkd":
        raise ReskdError(f"part: teacher chooses from an rkd container, and {init.path} is of {layout}: leave it out")
    if shifted and config.arch != "tsm":
        raise ReskdError(f"checkpoint {init.path} is a TSM, whose weights are of no use without its shift: set "
                         f"model.arch to tsm, not {config.arch}")  # fmt: skip
    notes = ["trained without the temporal shift"] if config.arch == "tsm" and not shifted else []
    if layout == "reskd":
        return stored.tensors, layout, names, notes
    ours = to_ours(stored.tensors, layout, init.part, config, model.backbone)
    return ours, f"{layout} ({init.part})" if layout == "rkd" else layout, names, notes


def _why_not(head: dict, mine: dict, names: Sequence[str] | None, classes: Sequence[str] | None) -> str | None:
    """Why a checkpoint's classifier can't be the model's, with a remedy of the data's; None where it can."""
    if not head:
        return f"has no classifier, and the model's is for {len(mine['head.fc.weight'])} classes: give one that has"
    theirs, here = (len(tensors["head.fc.weight"]) if "head.fc.weight" in tensors else 0 for tensors in (head, mine))
    if theirs != here:
        return f"has a classifier of {theirs} classes, the model's is for {here}: prepare the data with its class list"
    if any(head[name].shape != mine[name].shape for name in mine if name in head) or len(head) < len(mine):
        return "has a classifier of another shape or without a bias: give another"
    if names is not None and classes is not None and tuple(names) != tuple(classes):
        return (f"knows other classes, or in another order ({first_difference(names, classes)}): prepare the data with "
                "its order (prepare --class-order FILE)")  # fmt: skip
    return None


def weights_sha256(model: torch.nn.Module) -> str:
    """Digest of names, shapes, dtypes, and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
