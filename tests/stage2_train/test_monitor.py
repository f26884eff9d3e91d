"""Pseudo-labels against held-back masks, on maps of four pixels whose figures are counted by hand."""

import pytest
import torch

from stage2_train.losses import IGNORE
from stage2_train.methods.base import Pseudo
from stage2_train.monitor import pseudo_quality


def four_pixels(with_prior: bool) -> dict[str, float]:
    """One sample of 1 x 4: the object is the two pixels on the left."""

    def row(*values: float) -> torch.Tensor:
        return torch.tensor(values)[None, None, None]

    pseudo = Pseudo(
        samples=(),
        flip_B=torch.zeros(1, dtype=torch.bool),
        weak_B1HW=row(0.9, 0.2, 0.8, 0.1),
        prior_B1HW=row(0.6, 0.7, 0.3, 0.5) if with_prior else None,
        target_B1HW=row(0.8, 0.6, 0.7, 0.2),
        label_BHW=torch.tensor([[[1, IGNORE, 1, 0]]]),
    )
    mask = torch.tensor([[[True, True, False, False]]])
    return {name: float(value) for name, value in pseudo_quality(pseudo, mask).items()}


def test_of_four_pixels_three_are_disputed_and_two_of_them_taught() -> None:
    """Right in the dispute: the prior at two pixels; taught at two, one of them wrongly."""
    assert four_pixels(with_prior=True) == pytest.approx(
        {
            "weak_iou": 1 / 3,
            "fused_iou": 2 / 3,
            "prior_iou": 2 / 3,
            "selected_accuracy": 2 / 3,
            "foreground_recall": 1 / 2,
            "disputed": 3 / 4,
            "disputed_prior_right": 2 / 4,
            "disputed_taught": 2 / 4,
            "disputed_taught_right": 1 / 4,
        }
    )


def test_without_a_prior_nothing_is_disputed() -> None:
    """The figures of the prior are left out."""
    figures = four_pixels(with_prior=False)
    assert set(figures) == {"weak_iou", "fused_iou", "selected_accuracy", "foreground_recall"}
