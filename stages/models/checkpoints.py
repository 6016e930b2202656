"""Checkpoints: one safetensors file with the weights and all that later stages need to know about the model."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes

from cache.errors import ReskdError
from cache.json_file import parse_json
from cache.store import write_atomically
from cache.view import ViewPolicy
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.transformers_net import library
from stages.models.video_model import VideoModel
from stages.models.weight_files import read_safetensors
from stages.remote.local_copy import local_copy
from stages.remote.url_path import Location

FORMAT = 1
MAX_SIZE = 8192  # px of a picture's side
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
    meta["sha256"] = _digest(tensors, meta)
    write_atomically(path, to_bytes(tensors, metadata={"reskd": json.dumps(meta)}))


def read_checkpoint(path: Location) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """The tensors and the card of a file that `save_model` wrote.

    Raises ReskdError if the file doesn't exist, is damaged, or was written by another program or in another format, and
    StoreError if a file at a URL can't be had.
    """
    with local_copy(path) as file:
        return _read_checkpoint(file)


def _read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    if not os.path.isfile(path):
        raise ReskdError(f"checkpoint {path} does not exist; give a .safetensors that train-student wrote")
    tensors, metadata = read_safetensors(path)
    card = parse_card(path, metadata.get("reskd"))
    meta = parse_json(metadata["reskd"], nan=True)
    if meta.pop("sha256", None) not in (None, _digest(tensors, meta)):
        raise ReskdError(f"checkpoint {path} is damaged: its sha256 is not that of its weights and its model description; "
                         "copy the file again")  # fmt: skip
    return tensors, card


def _digest(tensors: dict[str, torch.Tensor], meta: dict) -> str:
    """sha256 of the weights and of the model description, without which a flipped bit would be another weight."""
    return hashlib.sha256(f"{tensors_sha256(tensors)} {json.dumps(meta)}".encode()).hexdigest()


def parse_card(path: Location, text: str | None) -> ModelCard:
    """The card in `text`, from the metadata of the file `path`. Raises ReskdError if it can't be read."""
    try:
        meta = parse_json(text or "null", nan=True)
    except ValueError as error:
        raise ReskdError(
            f"checkpoint {path} can't be read: its model description is no JSON ({error}); copy the file again"
        ) from error
    if not isinstance(meta, dict):
        raise ReskdError(f"checkpoint {path} has no model description; give a .safetensors that train-student or "
                         "import-checkpoint wrote")  # fmt: skip
    if meta.get("format") != FORMAT:
        raise ReskdError(f"checkpoint {path} has format {meta.get('format')}, and this version reads format {FORMAT}")
    try:
        if fault := _card_fault(meta):
            raise TypeError(fault)
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
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReskdError(f"checkpoint {path}: its model description is incomplete: {error}") from error


def _card_fault(meta: dict) -> str | None:
    """What is wrong with the types of a card; None if nothing is. `ModelConfig` and `ViewPolicy` check the rest."""
    classes = meta["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "its classes are no list of names"
    if meta["model"].get("num_classes") not in (None, len(classes)):
        return f"{len(classes)} classes, and a network for {meta['model']['num_classes']}"
    sizes = [meta["size"], *([] if meta["render_via"] is None else [meta["render_via"]])]
    if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes):
        return f"size or render_via is not from 1 to {MAX_SIZE} px"
    return None if isinstance(meta["notes"], dict) else "its notes are no object"


def load_model(path: Location) -> tuple[VideoModel, ModelCard]:
    """The model of a checkpoint, in eval mode on the CPU."""
    tensors, card = read_checkpoint(path)
    model = build_model(card.model)
    name = "the model"
    if card.model.arch == "transformers":
        name += f" as transformers {library().__version__} builds it (other versions may have other names of weights)"
    load_weights(model, tensors, path, name)
    return model.eval(), card


def load_weights(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Location, name: str = "the model"
) -> None:
    """Load `tensors` into `model`; `path` and `name` are named in errors.

    Raises ReskdError that lists up to LISTED weights that are missing, unexpected, of another shape or not finite.
    """
    check_fit(model.state_dict(), tensors, path, name)
    model.load_state_dict(tensors)


def check_fit(
    wanted: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], path: Location, model: str = "the model"
) -> None:
    """ReskdError if `tensors` of the checkpoint don't fit the state dict `wanted` of the model. `model`: in the message."""
    missing = sorted(f"missing {name}" for name in wanted.keys() - tensors.keys())
    unexpected = sorted(f"unexpected {name}" for name in tensors.keys() - wanted.keys())
    others = []
    for name in sorted(wanted.keys() & tensors.keys()):
        stored, needed = tensors[name], wanted[name]
        if stored.shape != needed.shape:
            others.append(f"{name}: the checkpoint has shape {list(stored.shape)}, the model {list(needed.shape)}")
        elif stored.is_floating_point() != needed.is_floating_point():
            others.append(f"{name}: the checkpoint has {stored.dtype}, the model {needed.dtype}")
        elif not stored.to(needed.dtype).isfinite().all():
            others.append(f"{name} holds numbers that are not finite")
    kinds = [faults for faults in (missing, unexpected, others) if faults]
    if kinds:
        # Show some of each kind: missing and unexpected names side by side reveal a prefix or another network.
        shown = [fault for faults in kinds for fault in faults[: LISTED // len(kinds)]]
        more = sum(map(len, kinds)) - len(shown)
        lines = shown + ([f"and {more} more"] if more else [])
        raise ReskdError(f"checkpoint {path} doesn't fit {model}:\n  " + "\n  ".join(lines))


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes, dtypes and values of all weights. It doesn't depend on the file they came from."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
