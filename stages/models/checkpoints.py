"""Weights on disk: one safetensors file that carries all a later stage must know of its model."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from cache.errors import ReskdError
from cache.store import write_atomically
from cache.view import ViewPolicy
from stages.config import ModelConfig
from stages.models import VideoModel, build_model

FORMAT = 1


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
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("reskd", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ReskdError(f"checkpoint {path} can't be read as safetensors: {error}") from error
    if meta is None:
        raise ReskdError(f"checkpoint {path} has no model description; give a .safetensors that train-student wrote")
    if meta.get("format") != FORMAT:
        raise ReskdError(f"checkpoint {path} has format {meta.get('format')}, this version reads {FORMAT}")
    try:
        card = ModelCard(
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
    return tensors, card


def load_model(path: Path) -> tuple[VideoModel, ModelCard]:
    """The model of a checkpoint, in eval mode on the CPU."""
    tensors, card = read_checkpoint(path)
    model = build_model(card.model)
    load_weights(model, tensors, path)
    return model.eval(), card


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Strict: every missing, unexpected, or mis-shaped key is listed in the ReskdError."""
    own = model.state_dict()
    faults = [f"missing {name}" for name in own.keys() - tensors.keys()]
    faults += [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    faults += [
        f"{name} is {list(tensors[name].shape)} there and {list(own[name].shape)} here"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if faults:
        raise ReskdError(f"checkpoint {path} doesn't fit the model:\n  " + "\n  ".join(sorted(faults)))
    model.load_state_dict(tensors)


def weights_sha256(model: torch.nn.Module) -> str:
    """Digest of names, shapes, dtypes, and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
