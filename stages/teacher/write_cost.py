"""What the second half of stage one costs: to encode a teacher's answers, to compress them, and to compute digests."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cache.arrays import compressed_chunks
from cache.reduction import Constants
from stages.teacher.codes import FINITE, target_encoder
from stages.teacher.config import FeaturesConfig
from stages.teacher.encodings import ProbeOutput
from stages.teacher.reduction import Sample, constants_on, estimate_constants, reduce_features
from stages.teacher.teacher import Teacher

AT_ONCE = 16  # maps
ROUNDS = 2  # the first one imports and allocates


def write_seconds(output: ProbeOutput, teacher: Teacher, settings: Mapping[str, Mapping[str, Any]]) -> float:
    """Seconds of one core to encode, compress and digest the targets of a clip·view. Nothing is written.

    `settings`: the identity's settings of the targets. Constants that aren't estimated yet are those of the probe's maps.
    On a GPU the reduction and the codes cost the host nothing but the launch.
    """
    constants: Constants = {}
    if "features" in settings:
        constants = teacher.constants if teacher.constants is not None else _constants(output, teacher)
    encode, seconds = target_encoder(settings, constants, teacher.device), []
    tensors = constants_on(teacher.device, constants)
    for _ in range(ROUNDS):
        spent = 0.0
        for low in range(0, len(output.logits), AT_ONCE):
            rows = slice(low, low + AT_ONCE)
            targets = {"logits": torch.from_numpy(output.logits[rows]), "features": output.features[rows]}
            targets = {name: targets[name].to(teacher.device) for name in settings}
            started = time.process_time()
            if "features" in targets:
                targets["features"] = reduce_features(targets["features"], teacher.grid, tensors)
            arrays = {name: values.cpu().numpy() for name, values in encode(targets).items() if name != FINITE}
            for values in arrays.values():
                for chunk in compressed_chunks(values):
                    hashlib.sha256(chunk).hexdigest()
            spent += time.process_time() - started
        seconds.append(spent / len(output.logits))
    return min(seconds)


def _constants(output: ProbeOutput, teacher: Teacher) -> Constants:
    """Constants of the probe's maps, of the right shapes."""
    features: FeaturesConfig = teacher.features
    sample = Sample(teacher.grid, moments=features.has_basis)
    sample.add(output.features, np.zeros(len(output.features), bool))
    return estimate_constants(sample, features.codec, features.dims, features.energy, features.rotate)
