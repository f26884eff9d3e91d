"""Every method on a real batch: what it asks of the network, and what it teaches."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stage2_train.batch import Batch
from stage2_train.config import BlendConfig, L2lConfig, SampleLossConfig, TrainConfig
from stage2_train.losses import IGNORE
from stage2_train.method_facts import METHOD_FACTS
from stage2_train.methods import METHODS
from stage2_train.methods.l2l import L2l
from stage2_train.networks import Networks
from stage2_train.rple.policy import project_action, pseudo_label, state
from stage2_train.rple.reward import quality, reward
from stage2_train.spm import SpmConfig, fuse
from stage2_train.text_augment import StrongTextConfig
from tests.stage2_train.miniature import mini_config, plain_config

COMPARES_VIEWS = ("tscs_qdw",)
"""Methods whose pseudo-labels depend on the strong view too."""

ReadBatch = Callable[..., Batch]
MakeModel = Callable[[TrainConfig], Any]


class Recorder(torch.nn.Module):
    """Passes everything on and keeps what the network was asked."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.calls: list[dict[str, Any]] = []

    def forward(self, image, ids, mask, field=None, rows=None):  # type: ignore[no-untyped-def]
        self.calls.append(
            {
                "image": image,
                "ids": ids,
                "field": field,
                "rows": rows,
                "grad": torch.is_grad_enabled(),
                "training": self.training,
            }
        )
        return self.model(image, ids, mask) if field is None else self.model(image, ids, mask, field, rows)

    def both_branches(self, image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        self.calls.append({"image": image, "grad": torch.is_grad_enabled(), "training": self.training})
        return self.model.both_branches(image, ids, mask)

    def text_embedding(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.text_embedding(ids, mask)


def configs(root: Path) -> dict[str, TrainConfig]:
    return {name: mini_config(root) if name == "l2l" else plain_config(root, name) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_teaches(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel, name: str
) -> None:
    config = configs(mini_root)[name]
    model = make_model(config)
    method = METHODS[name](config)
    output = method.loss(Networks(model), read_batch(config))
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.loss.grad_fn is not None
    grads = [p.grad for p in model.decoder.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads) and any(
        g.abs().sum() > 0 for g in grads
    )
    assert all(not value.requires_grad and value.ndim == 0 for value in output.metrics.values())
    assert (output.pseudo is not None) == METHOD_FACTS[name].reads_unlabelled
    again = METHODS[name](config)
    assert again.loss(Networks(model), read_batch(config, 1)).metrics.keys() == output.metrics.keys()


@pytest.mark.parametrize("name", [n for n, facts in METHOD_FACTS.items() if facts.reads_unlabelled])
def test_what_would_be_taught_is_what_is_taught_and_leaves_no_trace(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel, name: str
) -> None:
    """No loss, no labelled samples and, but for the one that compares views, no strong view."""
    config, recorder = configs(mini_root)[name], Recorder(make_model(configs(mini_root)[name])).eval()
    batch, method = read_batch(config), METHODS[name](config)
    assert batch.unlabelled is not None
    before = copy.deepcopy(method.state_dict())
    networks = Networks(recorder, recorder if config.ema.teacher else None)
    with torch.no_grad():
        alone = method.pseudo(networks, batch.unlabelled)
        views = 2 if name in COMPARES_VIEWS else 1
        assert sum(len(call["image"]) for call in recorder.calls) == 4 * views
        assert method.finish_step(lambda block: block).keys() <= {
            "threshold_background",
            "threshold_foreground",
        }
        taught = method.loss(networks, batch).pseudo
    assert taught is not None and alone.samples == taught.samples and alone.flip_B is taught.flip_B
    for one, other in (
        (alone.weak_B1HW, taught.weak_B1HW),
        (alone.target_B1HW, taught.target_B1HW),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert (
        alone.label_BHW != taught.label_BHW
    ).float().mean() < 0.001  # sums of another batch, at a threshold
    assert (alone.prior_B1HW is None) == (taught.prior_B1HW is None)
    torch.testing.assert_close(method.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [n for n, facts in METHOD_FACTS.items() if facts.reads_unlabelled and not facts.needs_branch],
)
def test_the_weak_view_is_predicted_without_gradient_or_field(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel, name: str
) -> None:
    config = configs(mini_root)[name]
    recorder = Recorder(make_model(config)).train()
    batch = read_batch(config)
    METHODS[name](config).loss(Networks(recorder), batch)
    weak, strong = recorder.calls
    assert not weak["grad"] and not weak["training"] and weak["field"] is None
    assert strong["grad"] and strong["training"] and recorder.training
    assert len(strong["image"]) == 8
    labelled = batch.labelled
    seeing = 0
    if name == "l2l":  # a labelled sample's field is made of its own weak view
        assert labelled.has_prior_B is not None
        seeing = int((labelled.has_prior_B & (labelled.field_uniform_B < 0.5)).sum())
        assert 0 < seeing < 4
    assert len(weak["image"]) == seeing + 4


def test_weak_view_in_training_mode_by_option(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = configs(mini_root)["fixmatch"]
    recorder = Recorder(make_model(config)).train()
    METHODS["fixmatch"](config).loss(Networks(recorder, weak_eval=False), read_batch(config))
    assert recorder.calls[0]["training"]


def test_a_teacher_predicts_the_weak_view(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = configs(mini_root)["fixmatch"]
    student, teacher = Recorder(make_model(config)).train(), Recorder(make_model(config)).eval()
    METHODS["fixmatch"](config).loss(Networks(student, teacher), read_batch(config))
    assert [call["grad"] for call in student.calls] == [True]
    assert [call["grad"] for call in teacher.calls] == [False]


# --- l2l ---------------------------------------------------------------------------------------------------------


def run_l2l(config: TrainConfig, batch: Batch, model: Any) -> tuple[Any, Recorder]:
    recorder = Recorder(model).train()
    return METHODS["l2l"](config).loss(Networks(recorder), batch), recorder


def with_missing(batch: Batch, rows: list[bool]) -> Batch:
    """The batch with some unlabelled rows lacking a proposal; what they hold instead must not matter."""
    part = batch.unlabelled
    assert part is not None and part.prior_B1HW is not None
    has = ~torch.tensor(rows)
    prior = torch.where(has[:, None, None, None], part.prior_B1HW, torch.full_like(part.prior_B1HW, 0.77))
    return dataclasses.replace(batch, unlabelled=dataclasses.replace(part, prior_B1HW=prior, has_prior_B=has))


def test_target_is_the_fused_prior(mini_root: Path, read_batch: ReadBatch, make_model: MakeModel) -> None:
    config = mini_config(mini_root)
    batch = with_missing(read_batch(config), [False, True, False, False])
    output, _ = run_l2l(config, batch, make_model(config))
    part, pseudo = batch.unlabelled, output.pseudo
    fused, _ = fuse(part.prior_B1HW, pseudo.weak_B1HW, config.spm)
    assert torch.allclose(pseudo.target_B1HW[[0, 2, 3]], fused[[0, 2, 3]])
    assert torch.equal(pseudo.target_B1HW[1], pseudo.weak_B1HW[1])
    assert not torch.allclose(fused[1], pseudo.weak_B1HW[1])
    assert output.metrics["prior_rows"] == 0.75


def test_field_is_the_own_detached_target(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(mini_root, l2l=L2lConfig(field_probability=1.0, band_px=0))
    batch = with_missing(read_batch(config), [False, True, False, False])
    output, recorder = run_l2l(config, batch, make_model(config))
    call = recorder.calls[1]
    assert call["field"].shape == (8, 1, 32, 32) and not call["field"].requires_grad
    assert torch.equal(call["field"][4:], output.pseudo.target_B1HW)
    seen = torch.cat((batch.labelled.has_prior_B, torch.tensor([True, False, True, True])))
    assert call["rows"].tolist() == seen.nonzero()[:, 0].tolist()


def test_a_labelled_field_is_fused_with_its_own_trust(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(
        mini_root,
        l2l=L2lConfig(field_probability=1.0, band_px=0),
        spm=SpmConfig(confidence_gain=0.5),
    )
    batch, model = with_missing(read_batch(config), [False, True, False, False]), make_model(config).eval()
    labelled = dataclasses.replace(
        batch.labelled,
        has_prior_B=torch.tensor([False, True, True, True]),
        trust_B=torch.tensor([0.0, 0.1, 0.9, torch.nan]),
    )
    recorder = Recorder(model).eval()
    output = METHODS["l2l"](config).loss(Networks(recorder), dataclasses.replace(batch, labelled=labelled))
    inputs = labelled.image_BHW3, labelled.ids_BT, labelled.token_mask_BT
    weak_B1HW = Networks(model).weak_prob(*inputs)
    expected, _ = fuse(labelled.prior_B1HW, weak_B1HW, config.spm, labelled.trust_B)
    assert torch.allclose(recorder.calls[1]["field"][1:4], expected[1:], atol=1e-5)
    part = batch.unlabelled
    _, lam_B1HW = fuse(part.prior_B1HW, output.pseudo.weak_B1HW, config.spm, part.trust_B)
    has_B111 = part.has_prior_B[:, None, None, None]
    assert output.metrics["lam"] == pytest.approx(float((lam_B1HW * has_B111).mean()), rel=1e-5)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_field_probability(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel, probability: float, share: float
) -> None:
    config = mini_config(mini_root, l2l=L2lConfig(field_probability=probability, band_px=0))
    on, allowed = 0, 0
    model = make_model(config)
    for key in range(6):
        batch = read_batch(config, key)
        _, recorder = run_l2l(config, batch, model)
        on += len(recorder.calls[1]["rows"])
        allowed += int(batch.labelled.has_prior_B.sum() + batch.unlabelled.has_prior_B.sum())
    assert abs(on / allowed - share) < 0.25 and (share == 0.5 or on / allowed == share)


def test_static_thresholds_without_the_policy(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(mini_root, l2l=L2lConfig(use_rple=False, band_px=0))
    output, _ = run_l2l(config, read_batch(config), make_model(config))
    target, label = output.pseudo.target_B1HW[:, 0], output.pseudo.label_BHW
    assert torch.equal(label == 1, target >= 0.70) and torch.equal(label == 0, target <= 0.20)
    assert set(label.unique().tolist()) <= {0, 1, IGNORE} and "tau_fg" not in output.metrics


def test_without_spm_the_target_is_the_weak_view(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(mini_root, l2l=L2lConfig(use_spm=False, field_probability=1.0, band_px=0))
    batch = read_batch(config)
    output, recorder = run_l2l(config, batch, make_model(config))
    assert torch.equal(output.pseudo.target_B1HW, output.pseudo.weak_B1HW)
    has = batch.unlabelled.has_prior_B
    assert torch.equal(recorder.calls[1]["field"][4:][has], batch.unlabelled.prior_B1HW[has])


def test_without_sesm_no_field_is_given(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = plain_config(mini_root, "l2l")
    config = dataclasses.replace(config, l2l=L2lConfig(use_sesm=False, band_px=0))
    _, recorder = run_l2l(config, read_batch(config), make_model(config))
    assert [call["field"] for call in recorder.calls] == [None, None]
    assert len(recorder.calls[0]["image"]) == 4  # the labelled weak views are not needed


def test_policy_learns_once_per_step_from_the_whole_batch(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(mini_root)
    method, networks = METHODS["l2l"](config), Networks(make_model(config))
    before = {k: v.clone() for k, v in method.agent.actor.state_dict().items()}
    outputs = [method.loss(networks, read_batch(config, key)) for key in range(2)]
    assert all(torch.equal(before[k], v) for k, v in method.agent.actor.state_dict().items())
    metrics = method.finish_step(lambda rows: rows)
    assert len(method.agent.buffer) == 8 and set(metrics) == {"policy_critic_loss", "policy_q"}
    assert any(not torch.equal(before[k], v) for k, v in method.agent.actor.state_dict().items())
    mean = torch.stack([torch.stack((o.metrics["tau_fg"], o.metrics["tau_bg"])) for o in outputs]).mean(0)
    assert torch.allclose(method.agent.thresholds_A, mean, atol=1e-6)
    method.loss(networks, read_batch(config, 2))
    method.finish_step(lambda rows: rows)
    assert len(method.agent.buffer) == 12


def test_the_policy_learns_the_same_from_micro_batches(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    """Step 1 in one batch of four and in two of two: the same transitions in the same order, and the same update."""
    ends = []
    for accumulation, keys in ((1, [1]), (2, [2, 3])):
        config = mini_config(mini_root, accumulation=accumulation)
        method, networks = METHODS["l2l"](config), Networks(make_model(config))
        for key in keys:
            method.loss(networks, read_batch(config, key))
        method.finish_step(lambda rows: rows)
        ends.append(method.state_dict())
    one, two = ends
    assert one["replay_seen"] == two["replay_seen"] == 4
    for name in ("replay_rows", "thresholds"):
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    for name in ("actor", "critic", "target"):
        assert all(torch.allclose(one[name][key], two[name][key], atol=1e-5) for key in one[name]), name


def test_policy_state_travels(mini_root: Path, read_batch: ReadBatch, make_model: MakeModel) -> None:
    config = mini_config(mini_root)
    networks = Networks(make_model(config).eval())
    one, two = METHODS["l2l"](config), METHODS["l2l"](config)
    one.loss(networks, read_batch(config, 0))
    one.finish_step(lambda rows: rows)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for method in (one, two):
        torch.manual_seed(5)
        method.loss(networks, read_batch(config, 1))
        method.finish_step(lambda rows: rows)
    a, b = one.state_dict(), two.state_dict()
    assert torch.equal(a["replay_rows"], b["replay_rows"]) and torch.equal(a["thresholds"], b["thresholds"])
    assert all(torch.equal(a["actor"][k], b["actor"][k]) for k in a["actor"])


def test_a_transition_by_its_parts(mini_root: Path) -> None:
    """Unprimed under the thresholds in force, primed under those of the action, which is allowed."""
    config = mini_config(mini_root)
    method, generator = L2l(config), torch.Generator().manual_seed(0)
    target_B1HW, weak_B1HW = (torch.rand(3, 1, 8, 8, generator=generator) for _ in range(2))
    noise_B2 = torch.tensor([[0.0, 0.0], [10.0, -5.0], [-90.0, 90.0]])
    label_BHW, extra, transition_B = method._label(target_B1HW, weak_B1HW, noise_B2)
    weights, before_BA = config.rple.reward, method.agent.thresholds_A.expand(3, 2)
    old_BHW = pseudo_label(target_B1HW, before_BA[:, 0], before_BA[:, 1], 0)
    state_BS = state(target_B1HW, weak_B1HW, old_BHW)
    noisy_BA = method.agent.act(state_BS) + config.rple.ddpg.noise_std * noise_B2
    action_BA = project_action(noisy_BA, config.rple.policy)
    assert not torch.allclose(noisy_BA, action_BA)
    assert torch.equal(label_BHW, pseudo_label(target_B1HW, action_BA[:, 0], action_BA[:, 1], 0))
    old_B3, new_B3 = (quality(weak_B1HW, target_B1HW, one, weights.beta) for one in (old_BHW, label_BHW))
    reward_B = reward(old_B3, new_B3, before_BA, action_BA, weights)
    next_BS = state(target_B1HW, weak_B1HW, label_BHW)
    expected = torch.cat((state_BS, action_BA, reward_B[:, None], next_BS), dim=1)
    assert torch.allclose(transition_B, expected, atol=1e-6) and len(reward_B.unique()) == 3
    assert float(extra["reward"]) == pytest.approx(float(reward_B.mean()), abs=1e-6)


def test_the_policy_learns_from_all_processes(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    """Of two that saw the same, as of one that saw it twice."""
    ends, config = [], mini_config(mini_root)
    for times, gather in ((1, lambda rows: torch.cat((rows, rows))), (2, lambda rows: rows)):
        method, networks = L2l(config), Networks(make_model(config).eval())
        for _ in range(times):
            method.loss(networks, read_batch(config))
        method.finish_step(gather)
        ends.append(method.state_dict())
    assert ends[0]["replay_seen"] == 8
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_every_run_has_a_policy_of_its_own(mini_root: Path) -> None:
    one, same, other = (L2l(mini_config(mini_root, seed=seed)).agent.actor for seed in (1, 1, 2))
    assert torch.equal(one.net[0].weight, same.net[0].weight)
    assert not torch.equal(one.net[0].weight, other.net[0].weight)


@pytest.mark.parametrize(("asked", "band"), [(-1, 2), (0, 0), (5, 5)])
def test_the_band_is_scaled_unless_it_is_given(mini_root: Path, asked: int, band: int) -> None:
    config = mini_config(mini_root, l2l=L2lConfig(band_px=asked))
    vision = dataclasses.replace(config.segmentor.vision, image_size=320)
    wide = dataclasses.replace(config, segmentor=dataclasses.replace(config.segmentor, vision=vision))
    assert L2l(wide).band_px == band


def test_exploration_noise_comes_with_the_sample(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(mini_root)
    model, batch = make_model(config), read_batch(config)
    silent = dataclasses.replace(
        batch, unlabelled=dataclasses.replace(batch.unlabelled, noise_B2=torch.zeros(4, 2))
    )
    first, _ = run_l2l(config, batch, model)
    second, _ = run_l2l(config, batch, model)
    third, _ = run_l2l(config, silent, model)
    assert first.metrics["tau_fg"] == second.metrics["tau_fg"] != third.metrics["tau_fg"]


# --- pieces ------------------------------------------------------------------------------------------------------


def test_lambda_u_ramps_up(mini_root: Path) -> None:
    config = mini_config(mini_root, loss=SampleLossConfig(lambda_unlabelled=2.0, rampup_steps=4))
    method = METHODS["l2l"](config)
    assert [method.unlabelled_weight(step) for step in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]


def test_lambda_u_is_zero_in_the_burn_in(mini_root: Path) -> None:
    loss = SampleLossConfig(lambda_unlabelled=2.0, rampup_steps=2, burn_in_share=0.5)
    method = METHODS["l2l"](mini_config(mini_root, loss=loss))
    assert [method.unlabelled_weight(step) for step in (0, 2, 3, 4, 5)] == [0.0, 0.0, 1.0, 2.0, 2.0]
    at_once = SampleLossConfig(lambda_unlabelled=2.0, rampup_steps=0, burn_in_share=0.5)
    method = METHODS["l2l"](mini_config(mini_root, loss=at_once))
    assert [method.unlabelled_weight(step) for step in (0, 1, 2, 3, 5)] == [0.0, 0.0, 0.0, 2.0, 2.0]


def test_strong_text_without_candidates_is_the_weak_text(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(mini_root, text=StrongTextConfig(table="shapes", candidates=0))
    part = read_batch(config).unlabelled
    ids, _, share = Networks(make_model(config)).strong_text(part, 0.8)
    assert torch.equal(ids, part.candidate_ids_BKT[:, 0]) and share == 1


def test_strong_text_is_one_of_the_candidates(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = mini_config(mini_root)
    part = read_batch(config).unlabelled
    ids, _, share = Networks(make_model(config)).strong_text(part, -1.0)
    assert share == 1
    for row, candidates in zip(ids, part.candidate_ids_BKT, strict=True):
        assert any(torch.equal(row, candidate) for candidate in candidates)
    ids, _, share = Networks(make_model(config)).strong_text(part, 1.01)  # above every cosine
    assert torch.equal(ids, part.candidate_ids_BKT[:, 0])
    assert share == pytest.approx(1 / part.candidate_ids_BKT.shape[1])


def test_the_policy_learns_from_full_precision(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    """Under bf16 the reward is what it is without, for the same maps: it is a small difference of two means."""
    config = mini_config(mini_root)
    weak_B1HW = torch.rand(4, 1, *config.size_hw, generator=torch.Generator().manual_seed(1))

    class Fixed(Networks):
        def weak_prob(self, images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return weak_B1HW.repeat(2, 1, 1, 1)[-len(images) :]

    found = []
    for bf16 in (False, True):
        method = L2l(config)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            method.loss(Fixed(make_model(config)), read_batch(config))
        found += method._transitions
    assert len(found[0]) == 4 and torch.equal(*found)


def test_the_agreement_filter_passes_no_row_without_a_prior(
    mini_root: Path, read_batch: ReadBatch, make_model: MakeModel
) -> None:
    config = plain_config(
        mini_root, "mllm_blend", blend=BlendConfig(target="agree", agreement=0.0, threshold=0.5)
    )
    batch = read_batch(config)
    assert batch.unlabelled is not None and batch.unlabelled.has_prior_B is not None
    has_B = torch.tensor([True, False, True, False])
    batch = dataclasses.replace(batch, unlabelled=dataclasses.replace(batch.unlabelled, has_prior_B=has_B))
    pseudo = METHODS["mllm_blend"](config).loss(Networks(make_model(config)), batch).pseudo
    assert pseudo is not None
    assert ((pseudo.label_BHW != IGNORE).flatten(1).any(1) == has_B).all()
