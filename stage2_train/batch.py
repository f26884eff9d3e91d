"""What one process reads for one micro-batch.

Legend: B samples, H W model input, K candidate texts (the original first), T tokens, M candidate masks.
Invariant: the unlabelled part has no field that could hold a mask.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from shared.errors import DataError
from shared.types import Sample


@dataclass(frozen=True, kw_only=True)
class LabelledPart:
    """Weak views with their masks."""

    samples: tuple[Sample, ...]
    flip_B: torch.Tensor
    """Bool: the view is mirrored."""
    image_BHW3: torch.Tensor
    """u8."""
    target_BHW: torch.Tensor
    """Bool; a loss reads it as int64, which would take eight times as much of the memory that processes share."""
    ids_BT: torch.Tensor
    token_mask_BT: torch.Tensor
    prior_B1HW: torch.Tensor | None
    """f32 in [0,1]; None where no store is used."""
    has_prior_B: torch.Tensor | None
    """Bool: the row carries a usable proposal."""
    trust_B: torch.Tensor | None
    """f32 in [0,1]: rank of the frozen model's confidence among training rows; NaN where it has none."""
    field_uniform_B: torch.Tensor
    """f32 in [0,1): decides whether the sample sees the prior field."""


@dataclass(frozen=True, kw_only=True)
class UnlabelledPart:
    """Weak and strong views; there is no mask."""

    samples: tuple[Sample, ...]
    flip_B: torch.Tensor
    weak_BHW3: torch.Tensor
    strong_BHW3: torch.Tensor
    candidate_ids_BKT: torch.Tensor
    """Texts of the strong view to choose from; index 0 is the weak view's text."""
    candidate_mask_BKT: torch.Tensor
    choice_uniform_B: torch.Tensor
    """f32 in [0,1): decides which surviving candidate is used."""
    prior_B1HW: torch.Tensor | None
    has_prior_B: torch.Tensor | None
    trust_B: torch.Tensor | None
    field_uniform_B: torch.Tensor
    noise_B2: torch.Tensor
    """f32, standard normal: exploration noise of a policy."""
    candidates_BMHW: torch.Tensor | None = None
    """Bool: class-agnostic masks of things in the image, absent ones empty; None where the method reads none."""
    box_B4: torch.Tensor | None = None
    """f32 x0, y0, x1, y1 in [0,1] of the weak view, NaN where unknown: a weak label; None where none is read."""
    point_B2: torch.Tensor | None = None
    """f32 x, y in [0,1] of the weak view, NaN where unknown: a weak label; None where none is read."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's share of one micro-batch."""

    step: int
    micro: int
    labelled: LabelledPart
    unlabelled: UnlabelledPart | None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return dataclasses.replace(
            self,
            labelled=to_device(self.labelled, device),
            unlabelled=self.unlabelled and to_device(self.unlabelled, device),
        )


Part = TypeVar("Part", LabelledPart, UnlabelledPart)


def to_device(part: Part, device: torch.device) -> Part:
    """The same part on a device."""
    values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    moved: dict[str, Any] = {
        k: v.to(device, non_blocking=True) for k, v in values.items() if isinstance(v, torch.Tensor)
    }
    return dataclasses.replace(part, **moved)


def known_prior(part: LabelledPart | UnlabelledPart, weak_B1HW: torch.Tensor) -> torch.Tensor:
    """P† where the row has a proposal, Pw where it has none: a missing proposal is no information."""
    has_prior_B = declared(part.has_prior_B, "reads_prior")
    return torch.where(has_prior_B[:, None, None, None], declared(part.prior_B1HW, "reads_prior"), weak_B1HW)


def declared(tensor: torch.Tensor | None, fact: str) -> torch.Tensor:
    """A tensor of a batch that is read for some methods alone.

    Args:
        tensor: Where the method asks for it, not None.
        fact: The field of `MethodFacts` that asks for it.

    Raises:
        DataError: It is not there: the method reads what `METHOD_FACTS` does not say it reads.
    """
    if tensor is None:
        raise DataError(
            f"the method reads what the batch was not given: set {fact}=True for it in METHOD_FACTS of "
            "stage2_train/method_facts.py"
        )
    return tensor
