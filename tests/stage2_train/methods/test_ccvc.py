import dataclasses
from pathlib import Path

import pytest
import torch

from stage2_train.backbones.images import normalise_image
from stage2_train.config import CcvcConfig
from stage2_train.methods import METHODS
from stage2_train.methods.ccvc import discrepancy, taught
from stage2_train.networks import Networks, join_texts, weak_text
from stage2_train.segmentor import build_segmentor
from stage2_train.segmentor_config import PARTS, tiny_config
from tests.stage2_train.miniature import batch_of, model_of, plain_config


def test_conflicts_the_teacher_is_sure_of_weigh_more() -> None:
    teacher = torch.tensor([[[[0.95, 0.95, 0.6, 0.05, 0.45]]]])
    own = torch.tensor([[[[0.9, 0.2, 0.2, 0.6, 0.6]]]])
    label, weight = taught(teacher, own, CcvcConfig())
    assert label.tolist() == [[[1, 1, 1, 0, 0]]]
    assert weight.tolist() == [[[1.0, 2.0, 1.0, 2.0, 1.0]]]


def test_discrepancy_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])[:, :, None, None]
    second = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])[:, :, None, None]
    assert discrepancy(first, second).tolist() == pytest.approx([2.0, 1.0, 0.0])


def test_each_branch_feels_half_of_what_drives_it_from_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, 4, 4, generator=generator).requires_grad_() for _ in range(2))
    whole = 1.0 + torch.nn.functional.cosine_similarity(first, second, dim=1).flatten(1).mean(1)
    assert torch.allclose(discrepancy(first, second), whole)
    free = torch.autograd.grad(whole.sum(), (first, second))
    held = torch.autograd.grad(discrepancy(first, second).sum(), (first, second))
    assert all(torch.allclose(half, 0.5 * full) and full.any() for half, full in zip(held, free, strict=True))


def test_each_branch_is_taught_by_the_other(mini_root: Path) -> None:
    config = plain_config(mini_root, "ccvc")
    model, batch = model_of(config).eval(), batch_of(config)
    networks = Networks(model)
    part = batch.unlabelled
    weak = networks.weak_branches(part.weak_BHW3, part.candidate_ids_BKT[:, 0], part.candidate_mask_BKT[:, 0])
    assert not torch.allclose(*weak) and not weak[0].requires_grad
    output = METHODS["ccvc"](config).loss(networks, batch)
    assert torch.equal(output.pseudo.label_BHW == 1, weak[1][:, 0] >= 0.5)
    assert torch.equal(output.pseudo.weak_B1HW, weak[0])
    output.loss.backward()
    for module in (
        model.decoder,
        model.branch.decoder,
        model.branch.match,
        model.vision,
        model.branch.vision,
    ):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("parts", [("vision", "text", "fusion"), ("vision",)])
def test_both_networks_start_from_the_pretrained_weights(parts: tuple[str, ...]) -> None:
    """And differ in what starts at random."""
    config = dataclasses.replace(tiny_config(), second_branch=True, weight_parts=parts)
    model = build_segmentor(config)
    second = model.branch.state_dict()
    for part in PARTS[:4]:
        pairs = [
            (value, second[name]) for name, value in model.state_dict().items() if name.startswith(f"{part}.")
        ]
        assert pairs and all(torch.equal(*pair) for pair in pairs) == (part in parts)


def test_the_first_branch_is_the_network_that_is_evaluated(mini_root: Path) -> None:
    config = plain_config(mini_root, "ccvc")
    model, part = model_of(config).eval(), batch_of(config).labelled
    inputs = (normalise_image(part.image_BHW3), part.ids_BT, part.token_mask_BT)
    with torch.no_grad():
        assert torch.equal(model.both_branches(*inputs).first_logit_B2HW, model(*inputs))


def test_the_second_branch_reads_its_logits_off_the_map_that_is_kept_apart(mini_root: Path) -> None:
    """Beside that path the map alone would satisfy the discrepancy: it would negate, both decoders staying alike."""
    config = dataclasses.replace(plain_config(mini_root, "ccvc"), ccvc=CcvcConfig(discrepancy=0.0))
    model, part = model_of(config), batch_of(config).labelled
    METHODS["ccvc"](config).loss(Networks(model), batch_of(config)).loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.branch.match.parameters())
    maps = model.both_branches(normalise_image(part.image_BHW3), part.ids_BT, part.token_mask_BT)
    assert min(maps.first_BCHW.min(), maps.second_BCHW.min()) >= 0
    assert discrepancy(maps.first_BCHW, maps.second_BCHW).min() >= 1.0


def test_the_whole_loss_by_its_parts(mini_root: Path) -> None:
    """Means over branches, and over labelled and unlabelled views, of which there are not as many."""
    config = plain_config(mini_root, "ccvc", batch_labelled=2, ccvc=CcvcConfig(discrepancy=0.3))
    networks, batch, method = Networks(model_of(config).eval()), batch_of(config), METHODS["ccvc"](config)
    labelled, part = batch.labelled, batch.unlabelled
    assert part is not None
    ids_BT, token_mask_BT, _ = networks.strong_text(part, config.text.similarity)
    text = join_texts((labelled.ids_BT, labelled.token_mask_BT), (ids_BT, token_mask_BT))
    maps = networks.branches(torch.cat((labelled.image_BHW3, part.strong_BHW3)), *text)
    weak = networks.weak_branches(part.weak_BHW3, *weak_text(part))
    logits = maps.first_logit_B2HW, maps.second_logit_B2HW
    supervised = sum(method.labelled_loss(logit[:2], labelled)[0] for logit in logits) / 2
    consistent = (
        sum(
            method.pseudo_loss(logits[own][2:], *taught(weak[other], weak[own], config.ccvc))[0]
            for own, other in ((0, 1), (1, 0))
        )
        / 2
    )
    apart_B = discrepancy(maps.first_BCHW, maps.second_BCHW)
    apart = (apart_B[:2].mean() + apart_B[2:].mean()) / 2
    loss = config.loss
    expected = loss.lambda_labelled * supervised + loss.lambda_unlabelled * (consistent + 0.3 * apart)
    assert method.loss(networks, batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)
