"""Pseudo-labels against held-back masks, on maps of four pixels whose figures are counted by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from shared.types import Sample
from stage2_train.hidden_masks import HiddenMasks, pseudo_quality, with_accuracy
from stage2_train.losses import IGNORE
from stage2_train.pseudo_labels import Pseudo

SAMPLE = Sample(
    sample_id="d.s.1",
    image_id=1,
    file_name="1.png",
    height=1,
    width=4,
    ref_id=1,
    ann_id=7,
    sent_id=1,
    expression="red star",
    split="train",
)


def four_pixels(with_prior: bool = True) -> Pseudo:
    """One sample of 1 x 4."""

    def row(*values: float) -> torch.Tensor:
        return torch.tensor(values)[None, None, None]

    return Pseudo(
        samples=(SAMPLE,),
        flip_B=torch.zeros(1, dtype=torch.bool),
        weak_B1HW=row(0.9, 0.2, 0.8, 0.1),
        prior_B1HW=row(0.6, 0.7, 0.3, 0.5) if with_prior else None,
        target_B1HW=row(0.8, 0.6, 0.7, 0.2),
        label_BHW=torch.tensor([[[1, IGNORE, 1, 0]]]),
    )


def figures_of(pseudo: Pseudo) -> dict[str, float]:
    """The object is the two pixels on the left."""
    mask = torch.tensor([[[True, True, False, False]]])
    return {name: float(value) for name, value in pseudo_quality(pseudo, mask).items()}


def test_of_four_pixels_three_are_disputed_and_two_of_them_taught() -> None:
    """Right in the dispute: the prior at two pixels; taught at two, one of them wrongly."""
    assert figures_of(four_pixels()) == pytest.approx(
        {
            "weak_iou": 1 / 3,
            "fused_iou": 2 / 3,
            "prior_iou": 2 / 3,
            "selected": 3 / 4,
            "selected_right": 2 / 4,
            "foreground_recall": 1 / 2,
            "disputed": 3 / 4,
            "disputed_prior_right": 2 / 4,
            "disputed_taught": 2 / 4,
            "disputed_taught_right": 1 / 4,
        }
    )


def test_a_false_find_beside_a_small_object() -> None:
    """The object is the first pixel; the network finds three, of which the prior contests two, rightly."""
    pseudo = dataclasses.replace(
        four_pixels(),
        weak_B1HW=torch.tensor([[[[0.9, 0.9, 0.8, 0.1]]]]),
        prior_B1HW=torch.tensor([[[[0.9, 0.1, 0.1, 0.1]]]]),
        label_BHW=torch.tensor([[[1, 1, IGNORE, 0]]]),
    )
    found = pseudo_quality(pseudo, torch.tensor([[[True, False, False, False]]]))
    expected = {
        "weak_iou": 1 / 3,
        "prior_iou": 1.0,
        "selected": 3 / 4,
        "selected_right": 2 / 4,  # an ignored pixel is neither right nor wrong
        "foreground_recall": 1.0,
        "disputed": 2 / 4,
        "disputed_prior_right": 2 / 4,
        "disputed_taught": 1 / 4,
        "disputed_taught_right": 0.0,
    }
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected)


def test_of_several_samples_each_counts_alike_and_an_empty_one_nothing() -> None:
    """The second sample has no object, no find and nothing selected; the third is the first, mirrored."""
    one = four_pixels()
    assert one.prior_B1HW is not None
    weak, prior, target = one.weak_B1HW, one.prior_B1HW, one.target_B1HW
    three = dataclasses.replace(
        one,
        samples=tuple(dataclasses.replace(SAMPLE, ann_id=number) for number in (7, 8, 9)),
        flip_B=torch.tensor([False, False, True]),
        weak_B1HW=torch.cat([weak, 0 * weak, weak]),
        prior_B1HW=torch.cat([prior, 0 * prior, prior]),
        target_B1HW=torch.cat([target, 0 * target, target]),
        label_BHW=torch.cat([one.label_BHW, torch.full_like(one.label_BHW, IGNORE), one.label_BHW]),
    )

    class Masks:
        def mask(self, sample: Sample) -> np.ndarray:
            kept = {7: [True, True, False, False], 8: [False] * 4, 9: [False, False, True, True]}
            return np.array([kept[sample.ann_id]])

    found = HiddenMasks(Masks(), 1, 4).quality(three)  # type: ignore[arg-type]
    alone = figures_of(one)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: 2 / 3 * value for name, value in alone.items()}
    )


def test_a_half_is_foreground_of_both_maps() -> None:
    half = torch.full((1, 1, 1, 4), 0.5)
    pseudo = dataclasses.replace(four_pixels(), weak_B1HW=half, prior_B1HW=half, target_B1HW=half)
    figures = figures_of(pseudo)
    assert (figures["disputed"], figures["weak_iou"], figures["prior_iou"]) == (0.0, 0.5, 0.5)
    sure = dataclasses.replace(pseudo, prior_B1HW=torch.ones(1, 1, 1, 4))
    assert figures_of(sure)["disputed"] == 0.0


def test_without_a_prior_nothing_is_disputed() -> None:
    """The figures of the prior are left out."""
    figures = figures_of(four_pixels(with_prior=False))
    assert set(figures) == {"weak_iou", "fused_iou", "selected", "selected_right", "foreground_recall"}


def test_held_back_masks_are_read_anew_each_time() -> None:
    """A long run meets every mask of the train split: kept, they would fill the memory of each process."""
    reads = []

    class Masks:
        def mask(self, sample: Sample) -> np.ndarray:
            reads.append(sample.ann_id)
            return np.ones((1, 4), bool)

    hidden = HiddenMasks(Masks(), 1, 4)  # type: ignore[arg-type]
    for _ in range(3):
        hidden.quality(four_pixels())
    assert reads == [7, 7, 7]


def test_a_held_back_mask_is_mirrored_with_its_sample() -> None:
    class Masks:
        def mask(self, sample: Sample) -> np.ndarray:
            return np.array([[False, False, True, True]])

    hidden = HiddenMasks(Masks(), 1, 4)  # type: ignore[arg-type]
    mirrored = dataclasses.replace(four_pixels(), flip_B=torch.ones(1, dtype=torch.bool))
    found = {name: float(value) for name, value in hidden.quality(mirrored).items()}
    assert found == figures_of(four_pixels())


def test_a_sample_of_which_nothing_is_selected_has_no_say_in_the_accuracy() -> None:
    one = four_pixels()
    assert one.prior_B1HW is not None
    two = dataclasses.replace(
        one,
        weak_B1HW=one.weak_B1HW.repeat(2, 1, 1, 1),
        prior_B1HW=one.prior_B1HW.repeat(2, 1, 1, 1),
        target_B1HW=one.target_B1HW.repeat(2, 1, 1, 1),
        label_BHW=torch.cat([one.label_BHW, torch.full_like(one.label_BHW, IGNORE)]),
    )
    found = pseudo_quality(two, torch.tensor([[[True, True, False, False]]]).repeat(2, 1, 1))
    step = with_accuracy({name: float(value) for name, value in found.items()})
    assert step["selected_accuracy"] == pytest.approx(2 / 3)
    assert not {"selected", "selected_right"} & set(step)
    assert with_accuracy({"loss": 1.0, "selected": 0.0, "selected_right": 0.0}) == {"loss": 1.0}
    assert with_accuracy({"loss": 1.0}) == {"loss": 1.0}
