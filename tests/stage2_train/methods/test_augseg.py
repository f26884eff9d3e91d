import dataclasses
import math
from pathlib import Path

import pytest
import torch

from stage2_train.config import AugsegConfig
from stage2_train.losses import IGNORE
from stage2_train.methods import METHODS
from stage2_train.methods.augseg import paste_label, regions, sureness
from stage2_train.networks import Networks
from stage2_train.pseudo_labels import confident_label
from tests.stage2_train.methods.test_methods import Recorder
from tests.stage2_train.miniature import batch_of, model_of, plain_config

SIZE = torch.Size((4, 4))
QUARTER = AugsegConfig(min_area=0.25, max_area=0.25)


def test_sureness_by_hand() -> None:
    prob = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]], [[[0.9, 0.5]]]])
    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert sureness(prob).tolist() == pytest.approx([1.0, 0.0, 0.9 * (1 - entropy) / 2])


def test_region_by_hand() -> None:
    """A quarter of 4 x 4 is 2 x 2; places 0..2 are equally likely, and .5 is the middle one."""
    draw = torch.tensor([[0.9, 0.0, 0.5, 0.99]])
    region = regions(draw, torch.tensor([0.3]), SIZE, QUARTER)
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[0, 2:, 1:3] = True
    assert torch.equal(region, expected)
    draw = torch.tensor([[0.9, 0.0, 0.99, 0.0]])
    assert torch.equal(regions(draw, torch.tensor([0.3]), SIZE, QUARTER), expected.roll((-2, 1), (1, 2)))


@pytest.mark.parametrize(("sure", "area"), [(0.89, 4), (0.91, 0)])
def test_sure_samples_are_left_alone(sure: float, area: int) -> None:
    draw = torch.tensor([[0.9, 0.0, 0.0, 0.0]])
    assert regions(draw, torch.tensor([sure]), SIZE, QUARTER).sum() == area


def test_regions_stay_within_their_range() -> None:
    draws = torch.rand(500, 4, generator=torch.Generator().manual_seed(0))
    areas = regions(draws, torch.zeros(500), torch.Size((40, 40)), AugsegConfig()).flatten(1).sum(1) / 1600
    assert areas.min() >= 0.09 and areas.max() <= 0.41 and areas.std() > 0.05


@pytest.mark.parametrize(("paste", "inside"), [("ignore", IGNORE), ("background", 0), ("copy", 1)])
def test_pasted_labels(paste: str, inside: int) -> None:
    pasted = torch.tensor([[[True, False]]])
    label, source = torch.tensor([[[0, 0]]]), torch.tensor([[[1, 1]]])
    config = AugsegConfig(paste=paste)  # type: ignore[arg-type]
    assert paste_label(label, pasted, source, config).tolist() == [[[inside, 0]]]


def test_the_strong_view_holds_labelled_pixels_and_its_label_does_not(
    mini_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain_config(mini_root, "augseg")
    batch = batch_of(config)
    recorder = Recorder(model_of(config)).train()
    method, taught = METHODS["augseg"](config), []
    teach = method.pseudo_loss
    monkeypatch.setattr(method, "pseudo_loss", lambda *given: (taught.append(given[1]), teach(*given))[1])
    output = method.loss(Networks(recorder), batch)
    sent = recorder.calls[1]["image"][4:]
    changed = (sent != _normalised(batch.unlabelled.strong_BHW3)).any(1)
    assert changed.any() and 0 < output.metrics["pasted"] < 1
    assert torch.equal(
        sent.movedim(1, 3)[changed], _normalised(batch.labelled.image_BHW3).movedim(1, 3)[changed]
    )
    assert (taught[0][changed] == IGNORE).all()
    own = confident_label(output.pseudo.weak_B1HW, config.augseg.threshold)
    assert torch.equal(output.pseudo.label_BHW, own)  # for the log and for export
    assert (own[changed] != IGNORE).any()
    assert torch.equal(taught[0][~changed], own[~changed])


def _normalised(image: torch.Tensor) -> torch.Tensor:
    from stage2_train.backbones.images import normalise_image

    return normalise_image(image)


def test_pasting_is_keyed_by_step_and_sample(mini_root: Path) -> None:
    config = plain_config(mini_root, "augseg")
    method, batch = METHODS["augseg"](config), batch_of(config)
    first, again = method._draws(batch), method._draws(batch)
    later = method._draws(dataclasses.replace(batch, step=1))
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert len(torch.unique(first)) == first.numel()
