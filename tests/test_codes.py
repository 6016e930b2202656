"""Codes made in torch, on the teacher's device: the numbers of cache/codecs.py bit for bit, in the layout of the cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache.codecs import CODECS, scale_and_offset
from stages.teacher.codes import FINITE, encode_logits, encode_maps, target_encoder

NUMBERS = st.floats(-65504, 65504, width=32) | st.floats(-8, 8, width=32)
LAYOUTS = {  # of a map in memory: its channels last, or first in each picture, or first of all
    "last": lambda maps: maps,
    "first": lambda maps: maps.movedim(-1, 2).contiguous().movedim(2, -1),
    "planes": lambda maps: maps.movedim(-1, 1).contiguous().movedim(1, -1),
}


def ranges(draw, width, codec):
    """Scale and offset as stage one estimates them, and those of a channel that never varied."""
    ends = draw(hnp.arrays(np.float32, (2, width), elements=NUMBERS))
    return scale_and_offset(ends.min(0), ends.max(0), codec) if CODECS["features"][codec].levels else {}


@given(st.data(), st.sampled_from(list(CODECS["features"])), st.sampled_from(list(LAYOUTS)))
@settings(max_examples=150, deadline=None)
def test_maps_are_those_of_the_codec(device, draw, codec, layout):
    shape = draw.draw(hnp.array_shapes(min_dims=5, max_dims=5, max_side=5))
    maps = draw.draw(hnp.arrays(np.float32, shape, elements=NUMBERS))
    constants = ranges(draw.draw, shape[-1], codec)
    wanted = np.moveaxis(CODECS["features"][codec].encode(maps, constants)["features"], -1, 1)
    tensors = {name: torch.from_numpy(values).to(device) for name, values in constants.items()}
    found = encode_maps(LAYOUTS[layout](torch.from_numpy(maps).to(device)), codec, tensors).cpu()
    assert found.is_contiguous() and found.numpy().tobytes() == np.ascontiguousarray(wanted).tobytes()
    assert found.shape == wanted.shape and found.numpy().dtype == wanted.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_of_a_real_teachers_size_are_those_of_the_codec(device, layout):
    """Large enough for the kernels that torch keeps for large arrays."""
    maps = torch.randn(2, 8, 7, 7, 256, generator=torch.Generator().manual_seed(0)).relu()
    for codec, stored in CODECS["features"].items():
        flat = maps.flatten(0, 3).numpy()
        constants = scale_and_offset(flat.min(0), flat.max(0) * 0.9, codec) if stored.levels else {}
        wanted = np.moveaxis(stored.encode(maps.numpy(), constants)["features"], -1, 1)
        tensors = {name: torch.from_numpy(values).to(device) for name, values in constants.items()}
        found = encode_maps(LAYOUTS[layout](maps.to(device)), codec, tensors).cpu()
        assert np.array_equal(found.numpy(), wanted)


@given(st.data(), st.sampled_from(list(CODECS["logits"])))
@settings(max_examples=150, deadline=None)
def test_logits_are_those_of_the_codec(device, draw, codec):
    logits = draw.draw(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=NUMBERS))
    wanted = CODECS["logits"][codec].encode(logits, {})
    encoded = encode_logits(torch.from_numpy(logits).to(device), codec)
    found = {name: values.cpu().numpy() for name, values in encoded.items()}
    assert found.keys() == wanted.keys()
    assert all(
        found[name].dtype == values.dtype and np.array_equal(found[name], values) for name, values in wanted.items()
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65520.0, -65520.0])
def test_a_row_that_is_not_finite_in_one_target_is_named_and_changes_no_other_row(device, bad):
    settings = {"logits": {"codec": "uint8"}, "features": {"codec": "int4"}}
    constants = {"scale": np.full(3, 0.5, np.float32), "offset": np.zeros(3, np.float32)}
    encode = target_encoder(settings, constants, device)
    targets = {"logits": torch.randn(4, 5, device=device), "features": torch.randn(4, 2, 2, 2, 3, device=device)}
    clean = encode(targets)
    targets["logits"][1, 2] = bad
    targets["features"][3, 1, 0, 1, 2] = bad
    found = encode(targets)
    assert clean[FINITE].all() and found[FINITE].tolist() == [True, False, True, False]
    assert all(torch.equal(found[name][::2], clean[name][::2]) for name in ("logits", "scale", "offset", "features"))
