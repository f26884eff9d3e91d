import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from stage2_train.config import OmniResConfig
from stage2_train.losses import IGNORE
from stage2_train.methods import METHODS
from stage2_train.methods.omni_res import at_point, band_label, connected, corrected, in_box
from stage2_train.networks import Networks
from tests.stage2_train.methods.scripted import Scripted, picture
from tests.stage2_train.miniature import batch_of, plain_config

NAN = float("nan")


def label_of(*rows: str) -> torch.Tensor:
    """`#` foreground, `.` background, `?` ignored; [1,H,W]."""
    codes = {"#": 1, ".": 0, "?": IGNORE}
    return torch.tensor([[[codes[character] for character in row] for row in rows]])


def test_bands_by_hand() -> None:
    prob = torch.tensor([[[0.0, 0.01, 0.02, 0.29], [0.3, 0.5, 0.7, 0.71]]])
    assert torch.equal(band_label(prob, OmniResConfig()), label_of("??..", "???#"))


def prob_of(*rows: str) -> torch.Tensor:
    """Probabilities whose bands are `label_of` the same rows; [1,H,W]."""
    values = {"#": 0.9, ".": 0.1, "?": 0.5}
    return torch.tensor([[[values[character] for character in row] for row in rows]])


def corrected_by(prob: torch.Tensor, **weak_label: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """Labels, and whether samples are kept, under a `box_B4` or a `point_B2`."""
    kind: Literal["box", "point"] = "box" if "box_B4" in weak_label else "point"
    label, region = corrected(prob, SimpleNamespace(**weak_label), OmniResConfig(weak_label=kind))  # type: ignore[arg-type]
    return label, region.flatten(1).any(1).tolist()


def test_outside_the_box_nothing_is_foreground_and_nothing_becomes_background() -> None:
    prob = prob_of("##?#", "##?.", "?...", "#..?")
    box = torch.tensor([[0.0, 0.0, 0.5, 0.5]])  # the upper left quarter
    out, kept = corrected_by(prob, box_B4=box)
    assert torch.equal(out, label_of("##??", "##?.", "?...", "?..?")) and kept == [True]


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((0.25, 0.5, 0.75, 1.0), ("....", "....", ".##.", ".##.")),
        ((0.3, 0.0, 0.6, 0.2), (".#..", "....", "....", "....")),  # where the centre of a pixel is
    ],
)
def test_inside_by_hand(box: tuple[float, ...], inside: tuple[str, ...]) -> None:
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    assert torch.equal(in_box(mask, torch.tensor([box]), 0.0)[0][0], picture(*inside))


def test_a_dropped_sample_teaches_no_background() -> None:
    prob = prob_of("##?#", "##?.", "?...", "#..?")
    for weak_label in ({"box_B4": torch.full((1, 4), NAN)}, {"point_B2": torch.tensor([[0.6, 0.6]])}):
        out, kept = corrected_by(prob, **weak_label)
        assert (out == IGNORE).all() and kept == [False]


@pytest.mark.parametrize(("least", "kept"), [(0.25, True), (0.26, False)])
def test_a_box_hardly_filled_is_dropped(least: float, kept: bool) -> None:
    mask = picture("#..#", "..##", "####", "####")[None]  # 1 of the 4 pixels in the box
    assert in_box(mask, torch.tensor([[0.0, 0.0, 0.5, 0.5]]), least)[1].tolist() == [kept]


def test_an_unknown_box_drops_the_sample() -> None:
    assert in_box(picture("##", "##")[None], torch.full((1, 4), NAN), 0.0)[1].tolist() == [False]


def test_a_point_keeps_the_object_that_holds_it_and_makes_no_background_of_the_others() -> None:
    prob = prob_of("##..", "##?.", "...#", "?.##")
    out, kept = corrected_by(prob, point_B2=torch.tensor([[0.9, 0.9]]))
    assert torch.equal(out, label_of("??..", "???.", "...#", "?.##")) and kept == [True]
    out, kept = corrected_by(prob, point_B2=torch.tensor([[0.1, 0.1]]))
    assert torch.equal(out, label_of("##..", "##?.", "...?", "?.??")) and kept == [True]


def test_corners_connect() -> None:
    mask = picture("#...", ".#..", "..#.", "...#")[None]
    assert torch.equal(at_point(mask, torch.tensor([[0.1, 0.1]]))[0], mask)


@pytest.mark.parametrize("point", [(0.9, 0.1), (NAN, NAN)])
def test_a_point_off_the_mask_drops_the_sample(point: tuple[float, float]) -> None:
    mask = picture("##..", "##..", "....", "....")[None]
    assert at_point(mask, torch.tensor([point]))[1].tolist() == [False]


def test_connection_follows_a_long_way() -> None:
    """A spiral of some 200 pixels, and a wall that closes it off."""
    mask = torch.zeros(1, 15, 15, dtype=torch.bool)
    for ring in range(0, 7, 2):
        mask[0, ring, ring : 15 - ring] = True
        mask[0, ring : 15 - ring, 14 - ring] = True
        mask[0, 14 - ring, ring : 15 - ring] = True
        mask[0, ring + 2 : 15 - ring, ring] = True
        mask[0, ring + 2, ring : ring + 2] = True
    seed = torch.zeros_like(mask)
    seed[0, 0, 0] = True
    assert torch.equal(connected(seed, mask), mask)
    broken = mask.clone()
    broken[0, :, 14] = False
    reached = connected(seed, broken)
    assert reached.sum() == 14 and reached[0, 0, :14].all()


def test_a_seed_outside_the_mask_reaches_nothing() -> None:
    mask = picture("##..", "....")[None]
    assert not connected(~mask, mask).any()


@pytest.mark.parametrize("kind", ["box", "point"])
def test_dropped_samples_teach_nothing(mini_root: Path, kind: str) -> None:
    config = plain_config(mini_root, "omni_res", omni_res=OmniResConfig(weak_label=kind))  # type: ignore[arg-type]
    part = batch_of(config).unlabelled
    assert part is not None and (part.box_B4 is not None) == (kind == "box")
    unknown = {"box": {"box_B4": torch.full((4, 4), NAN)}, "point": {"point_B2": torch.full((4, 2), NAN)}}[
        kind
    ]
    prob = torch.full((4, 32, 32), 0.9)
    label, region = corrected(prob, part, config.omni_res)
    assert region.flatten(1).any(1).all() and (label == 1).any()
    label, region = corrected(prob, dataclasses.replace(part, **unknown), config.omni_res)
    assert not region.any() and (label == IGNORE).all()


def exported(root: Path, weak: torch.Tensor, **weak_label: torch.Tensor) -> torch.Tensor:
    """The map that the masks of one sample's export are cut from, [H,W]."""
    kind: Literal["box", "point"] = "box" if "box_B4" in weak_label else "point"
    config = plain_config(
        root, "omni_res", batch_labelled=1, batch_unlabelled=1, omni_res=OmniResConfig(weak_label=kind)
    )
    batch = batch_of(config)
    batch = dataclasses.replace(batch, unlabelled=dataclasses.replace(batch.unlabelled, **weak_label))
    both = weak.expand(2, -1, -1)
    return METHODS["omni_res"](config).loss(Networks(Scripted(weak, both)), batch).pseudo.target_B1HW[0, 0]


def test_what_is_exported_lies_in_the_box_or_is_the_object_at_the_point(mini_root: Path) -> None:
    """Two objects, left and right, the left one with an unsure rim."""
    weak = torch.full((1, 32, 32), 0.1)
    weak[:, 8:24, 4:12], weak[:, 8:24, 12:14], weak[:, 8:24, 20:30] = 0.9, 0.6, 0.9
    left = weak[0].clone()
    left[:, 16:] = 0.0
    inside = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    assert torch.allclose(exported(mini_root, weak, box_B4=inside), left)
    sure = torch.where(left > 0.7, left, 0.0)
    assert torch.allclose(exported(mini_root, weak, point_B2=torch.tensor([[0.2, 0.5]])), sure)
    nowhere = exported(mini_root, weak, point_B2=torch.tensor([[0.5, 0.1]]))
    assert nowhere.count_nonzero() == 0
    assert exported(mini_root, weak, box_B4=torch.full((1, 4), NAN)).count_nonzero() == 0
