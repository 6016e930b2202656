"""A folder of Hugging Face's: what its JSON files say, and its weights under this program's names.

Read are config.json, the preprocessor's JSON, and safetensors. Code in the folder is named and never run: the network is the
library's class of the table in `transformers_families`, built from config.json's numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cache.errors import ReskdError
from stages.import_checkpoint.config import ImportConfig
from stages.import_checkpoint.hub import CONFIG, DESCRIPTIONS, WEIGHTS, copy_of, fetch
from stages.import_checkpoint.transformers_pixels import pixels_of, read_object, size_of
from stages.models.config import ModelConfig
from stages.models.transformers_families import FAMILIES, Family
from stages.models.transformers_net import config_class, config_keys, library, net_config
from stages.models.weight_files import StoredWeights, read_safetensors
from stages.remote.url_path import Location, UrlPath
from stages.runtime.terminal import console

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES_OF_WEIGHTS = (".bin", ".pt", ".pth", ".pyth", ".tar", ".ckpt", ".msgpack", ".h5", ".safetensors")
INDEX = "model.safetensors.index.json"


def is_transformers(source: Location) -> bool:
    """Whether `source` is a folder, or no path at all and looks like the name of a model on Hugging Face's hub."""
    if isinstance(source, UrlPath):
        return not source.is_file() and source.is_dir()
    if source.exists() or source.parent.exists():
        return source.is_dir()
    return bool(HUB_ID.fullmatch(str(source))) and source.suffix not in FILES_OF_WEIGHTS


def open_transformers(config: ImportConfig) -> tuple[ImportConfig, StoredWeights]:
    """The import's config with the network, the pixels and the size that the folder names, and the weights.

    What the user has set stays. Raises ReskdError if a file is missing or can't be read, if the weights are pickled, or if
    the network is none that this program takes.
    """
    if isinstance(config.source, UrlPath):
        with copy_of(config.source) as (folder, fetch_weights):
            return _open_folder(config, folder, fetch_weights)
    if config.source.is_dir():
        return _open_folder(config, config.source, lambda: config.source)
    name = str(config.source)
    folder = fetch(name, DESCRIPTIONS)
    return _open_folder(config, folder, partial(fetch, name, WEIGHTS, revision=folder.name))


def _open_folder(
    config: ImportConfig, folder: Path, fetch_weights: Callable[[], Path]
) -> tuple[ImportConfig, StoredWeights]:
    """`folder`: the model's, or its copy. `fetch_weights` gives the folder with its weights."""
    described = read_object(folder / CONFIG)
    name = str(described.get("model_type"))
    _check_known(config.source, folder, name, described)
    given = config.model.model_dump(include=config.model.model_fields_set) if config.model else {}
    if fixed := given.keys() & {"arch", "backbone", "args"}:
        raise ReskdError(
            f"model.{min(fixed)}: {folder}/config.json says which network it is: leave --model and this key out"
        )
    given = pixels_of(folder) | given
    size = config.size if "size" in config.model_fields_set else size_of(folder)
    folder = fetch_weights()
    tensors = _read_weights(folder)
    labels = len(tensors["classifier.weight"]) if "classifier.weight" in tensors else 0
    model = _model_config(folder, name, described, given, with_classifier=labels > 0 and config.head != "drop")
    weights, notes = _our_weights(folder, model, tensors, labels)
    filled = config.model_copy(update={"model": model, "size": size})
    return filled, StoredWeights(weights, classes=_labels(described), format="transformers", notes=tuple(notes))


def _check_known(source: Location, folder: Path, name: str, described: dict[str, Any]) -> None:
    """ReskdError unless the network is one of the table. Code in the folder is named."""
    code = sorted(path.name for path in folder.glob("*.py"))
    code += ["auto_map in config.json"] if "auto_map" in described else []
    classes = described.get("architectures")
    kind = str(classes[0]) if isinstance(classes, list) and classes else None
    family = FAMILIES.get(name)
    if family is None and isinstance(described.get("architecture"), str):
        raise ReskdError(f"{folder} holds a network of timm: import its file {folder}/model.safetensors with --set "
                         f"model.arch=tsn --set model.backbone={described['architecture']}")  # fmt: skip
    if family is None:
        ran = f" It holds code ({', '.join(code)}), and no code of a checkpoint is run." if code else ""
        raise ReskdError(
            f"{folder}: a network of model_type {name!r} is not known here.{ran} Known: {', '.join(FAMILIES)}"
        )
    stems = (family.encoder.removesuffix("Model"), (family.classifier or family.encoder).split("For")[0])
    tasks = ("Model", "ForVideoClassification", "ForImageClassification", "ForPreTraining", "ForMaskedImageModeling")
    if kind is not None and kind not in {stem + task for stem in stems for task in tasks}:
        raise ReskdError(f"{folder}: its class {kind} is none of transformers' that are known here for {name} "
                         f"({family.classifier or family.encoder}), and no code of a checkpoint is run")  # fmt: skip
    if code:
        console.print(f"[yellow]warning[/] {source} holds code ({', '.join(code)}), which is not run: the network is "
                      f"transformers' own {family.encoder}", soft_wrap=True)  # fmt: skip


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder, under the names in its files."""
    index = folder / INDEX
    if index.exists():
        parts = read_object(index).get("weight_map")
        names = sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
        if not names or any(Path(part).name != part or not (folder / part).is_file() for part in names):
            raise ReskdError(
                f"{index} names files of weights that are not in {folder}: {', '.join(names)[:300] or 'none'}"
            )
    else:
        names = [name for name in ("model.safetensors",) if (folder / name).exists()]
    if not names:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in FILES_OF_WEIGHTS)
        if not pickled:
            raise ReskdError(f"{folder} has no model.safetensors: copy the whole folder, or take a model that has one")
        raise ReskdError(f"{folder} has its weights in {pickled[0]}, which may hold code, and no model.safetensors: if you "
                         "trust it, convert it where it came from: transformers.AutoModelForVideoClassification"
                         f".from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER) (AutoModelForImageClassification or "
                         "AutoModel for others)")  # fmt: skip
    return {name: tensor for part in names for name, tensor in read_safetensors(folder / part)[0].items()}


def _model_config(folder: Path, name: str, described: dict, given: dict, with_classifier: bool) -> ModelConfig:
    """The network's config: `given`, and the keys of `config.json` that describe it."""
    family, kind = FAMILIES[name], config_class(name)
    own = "own" if with_classifier and family.classifier else "mean"
    try:
        full = kind.from_dict({k: v for k, v in described.items() if k not in ("auto_map", "quantization_config")})
    except Exception as error:
        raise ReskdError(
            f"{folder}/config.json: transformers can't read it: {' '.join(str(error).split())[:300]}"
        ) from error
    args = {key: getattr(full, key) for key in sorted(config_keys(kind)) if getattr(full, key) is not None}
    values = {"arch": "transformers", "backbone": name, "args": args, "pooling": own} | given
    if family.video and "num_frames" not in given:
        frames = args.get("num_frames", args.get("frames_per_clip"))
        values |= {"num_frames": frames} if type(frames) is int else {}
    try:
        return ModelConfig.model_validate(values)
    except ValueError as error:
        raise ReskdError(f"{folder}: {error}") from error


def _labels(described: dict[str, Any]) -> tuple[str, ...] | None:
    """The class names of `id2label`; None if there are none but LABEL_0, LABEL_1, ..."""
    names = described.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        return None
    ordered = [names[str(i)] for i in range(len(names))]
    if not all(isinstance(name, str) for name in ordered) or all(re.fullmatch(r"LABEL_\d+", name) for name in ordered):
        return None
    return tuple(ordered)


def _our_weights(
    folder: Path, model: ModelConfig, tensors: dict[str, torch.Tensor], labels: int
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors in float32 under this program's names, and what was left out. What doesn't fit keeps its name or its
    shape, and a strict loader refuses it.

    The library reads its own older names. It gets tensors, and no path.
    """
    family: Family = FAMILIES[model.backbone]
    own, settings = model.pooling == "own", net_config(model)
    settings.num_labels = max(labels, 1)
    kind = getattr(library(), family.classifier if own else family.encoder)
    extra = {"add_pooling_layer": False} if kind.__name__ in ("ViTModel", "DeiTModel", "VivitModel") else {}
    with _quiet():
        net, report = kind.from_pretrained(
            None, config=settings, state_dict=dict(tensors), output_loading_info=True, ignore_mismatched_sizes=True,
            dtype=torch.float32, **extra)  # fmt: skip
    absent = {*report["missing_keys"]} - {name for name, *_ in report["mismatched_keys"]}
    found = {name: tensor for name, tensor in net.state_dict().items() if name not in absent}
    found |= {name: torch.empty(shape) for name, shape, _ in report["mismatched_keys"]}
    left_out = [name for name in report["unexpected_keys"] if set(name.split(".")) & {*family.left_out}]
    found |= {name: tensors.get(name, torch.empty(0)) for name in {*report["unexpected_keys"]} - {*left_out}}
    ours = {}
    for name, tensor in found.items():
        if "predictor" in name.split("."):
            left_out.append(name)
        elif own and name.startswith("classifier."):
            ours["head.fc." + name.removeprefix("classifier.")] = tensor
        else:
            ours["backbone." + name] = tensor
    parts = sorted({part for name in left_out for part in name.split(".") if part in family.left_out})
    return ours, [f"left out: {', '.join(parts)}"] if parts else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bar, and without its report: what is missing is said by us."""
    logging = library().utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
