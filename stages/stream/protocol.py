"""Protocols of evaluation: how many views of a video are averaged."""

from __future__ import annotations

import dataclasses

from cache.errors import ReskdError
from cache.view import ViewPolicy


def protocol_policy(policy: ViewPolicy, protocol: str) -> ViewPolicy:
    """The policy with the views of a protocol CxP: C clips in time, in three crops or, if P is 1, in the policy's own crop.

    Raises ReskdError if P is 1 and the policy has three crops, and if C is 1 and the policy has more clips.
    """
    clips, crops = map(int, protocol.split("x"))
    if clips == 1 < policy.clips:
        raise ReskdError(f"protocol {protocol}: the policy has {policy.clips} clips in time: give --protocol "
                         f"{policy.clips}x{policy.crops}, or policy.clips=1")  # fmt: skip
    if crops == 1 and policy.crop == "three_crop":
        raise ReskdError(f"protocol {protocol}: the policy's crop is three_crop, which has three crops: give --protocol "
                         f"{clips}x3, or another policy.crop")  # fmt: skip
    return dataclasses.replace(policy, clips=clips, crop="three_crop" if crops == 3 else policy.crop)
