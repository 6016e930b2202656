"""The projector: a trained map from the student's channels to those of the targets. It is dropped after training.

A 1x1 convolution (FitNets, Romero et al. 2015), here a linear map of channels, the same at every position. Without one, even at
equal width, a student may overfit its teacher's features ("Improved Feature Distillation via Projector Ensemble", Chen et
al., NeurIPS 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cache.errors import ReskdError
from cache.reduction import Constants

MEMBERS = 3  # of an ensemble, as in Chen et al.


class ProjectorEnsemble(nn.Module):
    """The mean of three maps ReLU(W x + b), then the fixed projection onto the basis, if the cache has one.

    The ReLU makes the mean of three more than one linear map. So it fits a teacher whose map has no negative numbers.
    """

    def __init__(self, width: int, teacher_width: int, constants: Constants):
        super().__init__()
        self.in_features, self.out_features = width, teacher_width
        self.members = nn.ModuleList(nn.Linear(width, teacher_width) for _ in range(MEMBERS))
        self.to_basis = basis_projection(constants) if "basis" in constants else None
        if self.to_basis is not None:
            self.out_features = self.to_basis.out_features
        if width == teacher_width:
            self._begin_at_identity()

    @torch.no_grad()
    def _begin_at_identity(self) -> None:
        """The mean of the maps is the identity. They differ, or they would stay equal."""
        for part in ("weight", "bias"):
            drawn = [getattr(member, part) for member in self.members]
            mean = sum(drawn) / MEMBERS
            for value in drawn:
                value.sub_(mean)
                if part == "weight":
                    value.add_(torch.eye(*value.shape))

    def forward(self, features: Tensor) -> Tensor:
        """[..., width] -> [..., d]."""
        mean = sum(member(features).relu() for member in self.members) / MEMBERS
        return mean if self.to_basis is None else self.to_basis(mean)


def build_projector(kind: str, width: int, teacher_width: int, constants: Constants) -> nn.Module | None:
    """The map from a student's `width` channels to those of the targets; None where they are compared as they are.

    `kind`: the key losses.projector. `constants`: the arrays at the cache's root; with a basis [D,d], d channels are compared.
    A trained linear map leads to the d channels directly: the basis is orthonormal, so the gradient is the same as with a map
    to D channels and a projection after it. At equal width it begins as the identity, or as the projection onto the basis,
    which is also the fixed map at equal width without training.
    Raises ReskdError for "none" and unequal widths.
    """
    equal = width == teacher_width
    if kind == "none" and not equal:
        raise ReskdError(f"losses.projector: none: the student's map has {width} channels and the teacher's {teacher_width}, "
                         "and they can't be compared: set losses.projector: linear (or auto)")  # fmt: skip
    if kind == "ensemble":
        return ProjectorEnsemble(width, teacher_width, constants)
    trained = kind == "linear" or not equal
    if equal and "basis" in constants:
        return basis_projection(constants).requires_grad_(trained)
    if not trained:
        return None
    projector = nn.Linear(width, constants["basis"].shape[1] if "basis" in constants else teacher_width)
    if equal:
        with torch.no_grad():
            projector.weight.copy_(torch.eye(width))
            projector.bias.zero_()
    return projector


def basis_projection(constants: Constants) -> nn.Linear:
    """The projection (x - mean) basis of a cache's maps, [..., D] -> [..., d]. It isn't trained."""
    basis = constants["basis"]
    projection = nn.Linear(*basis.shape)
    with torch.no_grad():
        projection.weight.copy_(torch.from_numpy(basis.T.copy()))
        projection.bias.copy_(torch.from_numpy(-constants["mean"] @ basis))
    return projection.requires_grad_(False)
