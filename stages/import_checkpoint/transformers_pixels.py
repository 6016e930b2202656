"""What the preprocessor's JSON in a folder of Hugging Face's says: the size of the pictures, mean and std of their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.json_file import read_json

PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ReskdError if there is none."""
    try:
        value = read_json(path, nan=True)
    except FileNotFoundError as error:
        raise ReskdError(f"{path} does not exist: give the whole folder of a model of Hugging Face") from error
    except (OSError, ValueError) as error:
        raise ReskdError(f"{path} can't be read: {error}; copy it again") from error
    if not isinstance(value, dict):
        raise ReskdError(f"{path} is no JSON object; copy it again")
    return value


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in PREPROCESSORS if (folder / name).exists()), None)
    if path is None:
        raise ReskdError(
            f"{folder} has no {PREPROCESSORS[0]}, which says size, mean and std of its pixels: copy it there"
        )
    found = read_object(path)
    for part in ("video_processor", "image_processor"):
        found = found[part] if isinstance(found.get(part), dict) else found
    return found


def pixels_of(folder: Path) -> dict[str, tuple[float, ...]]:
    """mean and std of RGB in 0..1, from the preprocessor's factor, offset, mean and std of 0..255."""
    found = _preprocessor(folder)
    normal = found.get("do_normalize", True)
    mean, std = (found.get(f"image_{what}") if normal else [plain] * 3 for what, plain in (("mean", 0.0), ("std", 1.0)))
    factor = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    offset = 1.0 if found.get("offset") else 0.0
    for value in (mean, std):
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
            raise ReskdError(
                f"{folder}: its preprocessor has image_mean {mean} and image_std {std}: three numbers are needed"
            )
    if not isinstance(factor, int | float) or factor <= 0:
        raise ReskdError(f"{folder}: its preprocessor has rescale_factor {factor!r}: a number above 0 is needed")
    scale = 255 * factor
    return {
        "mean": tuple(round((m + offset) / scale, 10) for m in mean),
        "std": tuple(round(s / scale, 10) for s in std),
    }


def size_of(folder: Path) -> int:
    """The side of the pictures that the network sees, in px."""
    found = _preprocessor(folder)
    value = found.get("crop_size") if found.get("do_center_crop") and found.get("crop_size") else found.get("size")
    if isinstance(value, dict):
        sides = {value[key] for key in ("height", "width", "shortest_edge") if value.get(key) is not None}
        value = sides.pop() if len(sides) == 1 else value
    if type(value) is not int or not 8 <= value <= 1024:
        raise ReskdError(f"{folder}: its preprocessor makes pictures of {value}, and a square of 8 to 1024 px is needed: give "
                         "--size")  # fmt: skip
    return value
