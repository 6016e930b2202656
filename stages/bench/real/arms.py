"""The arms of the study on real video. An arm is one way to train the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

INT4 = {"codec": "int4"}
FADING = {"end": 0.0, "shape": "cosine"}
RISING_LATE = {"start": 0.0, "end": 1.0, "shape": "linear", "until": 0.7}  # first imitation, then labels
RISING = {"start": 0.0, "end": 1.0, "shape": "linear", "until": 0.2}  # its gradient at a fresh classifier is large


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    teacher: "tuned" (trained on the clips), "early" (the same, stopped after a third), "pretrained" (ImageNet's weights as they
    are: its maps alone), "own" (the same of the student's own net, at the teacher's size); None: labels alone.
    """

    name: str
    losses: Mapping[str, Any] = field(default_factory=dict)  # beside the cross entropy of the labels
    teacher: str | None = None
    in_the_loop: bool = False  # the teacher runs in each step, on fresh views
    views: int | None = None  # stored views that are replayed; None: the study's
    features: Mapping[str, Any] = field(default_factory=lambda: INT4)  # how the maps are stored
    size: int | None = None  # px; None: the study's
    few_labels: bool = False  # a tenth of the labels
    large: bool = False  # the student's net at the teacher's size: what resolution costs


def fading(weight: float) -> dict[str, Any]:
    """A weight that falls to nothing at the end of the training."""
    return {"start": weight, **FADING}


LABELS = Arm("labels alone")
UPPER = Arm("the student's net at the teacher's size", large=True)
UPSTREAM = Arm("upstream: feature_mse", {"feature_mse": 5.0}, "tuned")
UPSTREAM_LOOP = replace(UPSTREAM, name="upstream, in the loop", in_the_loop=True)


def screening_arms(quick: bool) -> list[Arm]:
    """Upstream's recipe, each part of the recipe alone, and teachers that haven't memorised the clips."""
    tuned, pretrained, own = (Arm("", teacher=teacher) for teacher in ("tuned", "pretrained", "own"))
    arms = [
        UPSTREAM,
        replace(tuned, name="feature_mse, fading", losses={"feature_mse": fading(5.0)}),
        replace(tuned, name="feature_mse, linear projector", losses={"feature_mse": 5.0, "projector": "linear"}),
        replace(tuned, name="feature_mse, three projectors", losses={"feature_mse": 5.0, "projector": "ensemble"}),
        replace(tuned, name="feature_nmse", losses={"feature_nmse": 1.0}),
        replace(tuned, name="feature_cosine", losses={"feature_cosine": 3.0}),
        replace(tuned, name="feature_relation", losses={"feature_relation": 20.0}),
        replace(tuned, name="dist", losses={"dist": RISING, "temperature": 2.0}),
        replace(tuned, name="logit_kl, T = 2", losses={"logit_kl": 1.0, "temperature": 2.0}),
        replace(tuned, name="logit_kl, T = 4", losses={"logit_kl": 1.0, "temperature": 4.0}),
        replace(tuned, name="logit_kl, standardised", losses={"logit_kl": 3.0, "temperature": 2.0,
                                                              "standardise_logits": True}),
        replace(pretrained, name="pretrained: feature_mse", losses={"feature_mse": 5.0}),
        replace(pretrained, name="pretrained: feature_nmse", losses={"feature_nmse": 1.0}),
        replace(pretrained, name="pretrained: feature_cosine", losses={"feature_cosine": 3.0}),
        replace(pretrained, name="pretrained: feature_cosine, heavy", losses={"feature_cosine": 10.0}),
        replace(pretrained, name="pretrained: feature_cosine, fading", losses={"feature_cosine": fading(3.0)}),
        replace(own, name="own: feature_mse", losses={"feature_mse": 5.0}),
        replace(own, name="own: feature_cosine", losses={"feature_cosine": 3.0}),
        replace(own, name="own: feature_cosine, fading", losses={"feature_cosine": fading(3.0)}),
        replace(own, name="own: feature_cosine, labels rising", losses={"feature_cosine": 10.0, "cross_entropy": RISING_LATE}),
        replace(tuned, name="early: feature_mse", teacher="early", losses={"feature_mse": 5.0}),
        UPSTREAM_LOOP,
    ]  # fmt: skip
    return [arms[0], arms[11]] if quick else arms


def combined_arms(features: Arm, answers: Arm) -> list[Arm]:
    """The best arm of features and the best arm of logits together, with a constant and with a fading weight."""
    losses = {**features.losses, **answers.losses}
    if features.teacher != answers.teacher:  # one cache has the targets of one teacher
        return []
    weights = {name: fading(weight) if isinstance(weight, float) and name.startswith("feature") else weight
               for name, weight in losses.items()}  # fmt: skip
    both = replace(features, name=f"{features.name} + {answers.name}", losses=losses)
    return [both, *([] if weights == losses else [replace(both, name=f"{both.name}, fading", losses=weights)])]


def sized(arm: Arm, size: int) -> Arm:
    return replace(arm, name=f"{arm.name}, {size} px", size=size)


def with_few_labels(arm: Arm) -> Arm:
    return replace(arm, name=f"{arm.name}, a tenth of the labels", few_labels=True)


def labels_like(arm: Arm) -> Arm:
    """Labels alone for a student of the same size and with as many labels."""
    labels = LABELS if arm.size is None else sized(LABELS, arm.size)
    return with_few_labels(labels) if arm.few_labels else labels


def claim_arms(best: Arm) -> list[Arm]:
    """What the claim compares at one length."""
    return [LABELS, UPSTREAM, best] if best != UPSTREAM else [LABELS, UPSTREAM]


def detail_arms(best: Arm) -> list[Arm]:
    """What the gain hangs on: the number of views, and how the maps are stored."""
    encodings = {"float16": {"codec": "float16"}, "int8": {"codec": "int8"},
                 "int4, 160 dims turned": {"codec": "int4", "dims": 160, "rotate": "hadamard"}}  # fmt: skip
    return [
        *(replace(best, name=f"{best.name}, V = {views}", views=views) for views in (1, 4, 16)),
        *(replace(best, name=f"{best.name}, {name}", features=features) for name, features in encodings.items()),
        *([] if "feature_nmse" in best.losses else [in_the_loop(best)]),  # a teacher in the loop has no deviations
    ]


def in_the_loop(best: Arm) -> Arm:
    return replace(best, name=f"{best.name}, in the loop", in_the_loop=True)
