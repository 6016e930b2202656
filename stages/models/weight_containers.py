"""What a trainer's checkpoint holds beside the weights: several sets of weights, class names, its program's version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import ReskdError

EXPORT_WEIGHTS = "if you trust the file, export the weights alone: torch.save(model.state_dict(), PATH)"
KEYS = ("state_dict", "model", "model_state_dict", "model_state", "net", "params")  # of the weights, the first counts
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
)  # of DistributedDataParallel, torch.compile, Lightning and others


def weights_key(loaded: Any) -> str | None:
    """The key of the weights in a trainer's checkpoint. None if the file is a state dict itself, or something else."""
    return next((key for key in KEYS if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)), None)


def other_weights(loaded: Any) -> tuple[str, ...]:
    """The keys of what else in a checkpoint holds tensors by name, such as averaged weights under `model_ema`."""
    key = weights_key(loaded)
    if key is None:
        return ()
    return tuple(str(n) for n, value in loaded.items() if n != key and isinstance(value, dict) and _has_tensors(value))


def _has_tensors(value: dict) -> bool:
    return any(isinstance(item, Tensor) for item in value.values())


def state_dict_of(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The weights in the content of a file. Raises ReskdError if it has none, or other things among them."""
    key = weights_key(loaded)
    inner = loaded if key is None else loaded[key]
    if not isinstance(inner, dict) or not _has_tensors(inner):
        keys = f" with {', '.join(map(str, list(inner)[:12])) or 'nothing'} in it" if isinstance(inner, dict) else ""
        raise ReskdError(
            f"checkpoint {path} is a {type(inner).__name__}{keys}, not a state dict of tensors; {EXPORT_WEIGHTS}"
        )
    for name, value in inner.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ReskdError(f"checkpoint {path}: {name!r} is a {type(value).__name__}, not a tensor; {EXPORT_WEIGHTS}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ReskdError(f"checkpoint {path}: {name} is sparse, quantised, or without data; save plain tensors")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # strides of 0: a byte, repeated
            raise ReskdError(f"checkpoint {path}: {name} claims {value.numel()} numbers, more than the file has; save plain "
                             "tensors")  # fmt: skip
    return {name: value.detach() for name, value in inner.items()}


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes of wrappers. A prefix is removed only if all names have it."""
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def class_names(loaded: Any) -> tuple[str, ...] | None:
    """The class names: `meta.CLASSES` of mmcv, `meta.dataset_meta.classes` of mmengine."""
    meta = _meta(loaded)
    for section in (meta, meta.get("dataset_meta")):
        for key in ("CLASSES", "classes"):
            names = section.get(key) if isinstance(section, dict) else None
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def is_mmaction2_1x(loaded: Any, names: set[str]) -> bool:
    """Whether mmaction2 1.x (with mmengine) wrote the file, by its `meta`, its `message_hub`, or a name of its Swin."""
    meta = _meta(loaded)
    if "mmengine_version" in meta or "dataset_meta" in meta or (isinstance(loaded, dict) and "message_hub" in loaded):
        return True
    major = str(meta.get("mmaction_version", "")).partition(".")[0]
    return (major.isdecimal() and int(major) >= 1) or "backbone.norm3.weight" in names


def _meta(loaded: Any) -> dict:
    meta = loaded.get("meta") if isinstance(loaded, dict) else None
    return meta if isinstance(meta, dict) else {}
