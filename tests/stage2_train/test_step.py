"""One optimiser step, with an optimiser that moves weights by their gradients alone."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from shared.config import apply_overrides
from stage2_train.batch import Batch
from stage2_train.ema import Ema
from stage2_train.methods import METHODS
from stage2_train.methods.base import Method
from stage2_train.networks import Networks
from stage2_train.optim import build_optimizer
from stage2_train.step import StepResult, _reduce, train_step
from tests.stage2_train.miniature import batch_of, mini_config, model_of, plain_config, segmentor_config


def moved(
    root: Path, *overrides: str, method: str = "fixmatch", compiled: bool = False
) -> tuple[StepResult, torch.Tensor]:
    """What a step of a method gave, and how far it moved the weights: f64 [num parameters]."""
    segmentor = segmentor_config(root / "tokenizer", sesm=method == "l2l", dropout=0.0)
    if method == "l2l":
        plain = mini_config(root, segmentor=segmentor)
    else:
        plain = plain_config(root, method, segmentor=segmentor)
    config = apply_overrides(plain, list(overrides))
    model = model_of(config)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0
    batches = [batch_of(config, micro) for micro in range(config.accumulation)]
    network = torch.compile(model, backend="eager") if compiled else model
    result = train_step(
        Accelerator(cpu=True), Networks(network), METHODS[config.method](config), optimizer, batches, config
    )
    return result, torch.nn.utils.parameters_to_vector(model.parameters()).detach().double() - before


def test_a_long_gradient_is_shortened_and_a_short_one_is_not(mini_root: Path) -> None:
    free, whole = moved(mini_root)
    wide, kept = moved(mini_root, "optim.grad_clip=1000")
    norm = wide.global_metrics["grad_norm"]
    assert free.global_metrics["grad_norm"] == norm
    assert torch.equal(kept, whole) and float(whole.norm()) == pytest.approx(norm, rel=1e-4)
    tight, short = moved(mini_root, f"optim.grad_clip={norm / 4}")
    assert tight.global_metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert torch.allclose(short, whole / 4, atol=1e-6)


def test_parts_of_a_batch_move_the_weights_as_the_whole_does(mini_root: Path) -> None:
    """Of the labelled loss: a pseudo-label on its threshold may fall to either side."""
    one, whole = moved(mini_root, "loss.lambda_unlabelled=0")
    two, parts = moved(mini_root, "loss.lambda_unlabelled=0", "accumulation=2")
    assert float((parts - whole).norm()) <= 1e-4 * float(whole.norm())
    assert two.loss == pytest.approx(one.loss, rel=1e-5)


def test_a_step_leaves_no_gradient_and_moves_the_average(mini_root: Path) -> None:
    config = plain_config(
        mini_root, "supervised", segmentor=segmentor_config(mini_root / "tokenizer", sesm=False)
    )
    model = model_of(config).eval()
    ema = Ema(model, 0.5)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = build_optimizer(model, config.optim, config.segmentor.loaded_parts)
    learner = METHODS["supervised"](config)
    train_step(
        Accelerator(cpu=True), Networks(model), learner, optimizer, [batch_of(config)], config, ema=ema
    )
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    average = torch.nn.utils.parameters_to_vector(ema.module.parameters())
    assert not torch.equal(after, before)
    assert torch.allclose(average, 0.1 * before + 0.9 * after, atol=1e-6)  # the first decay of the warm-up


def test_dropout_has_a_seed_for_each_part_of_each_step_in_each_process(
    mini_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain_config(mini_root, "supervised", accumulation=2)
    seeds: list[int] = []
    real = Method.labelled_only

    def noted(self: Method, *given: Any) -> Any:
        seeds.append(torch.initial_seed())
        return real(self, *given)

    monkeypatch.setattr(Method, "labelled_only", noted)
    model = model_of(config)
    optimizer = build_optimizer(model, config.optim, config.segmentor.loaded_parts)
    for process in (0, 1, 0):
        monkeypatch.setattr(Accelerator, "process_index", process)
        for step in (0, 1):
            batches = [batch_of(config, 2 * step + micro) for micro in range(2)]
            learner = METHODS["supervised"](config)
            train_step(Accelerator(cpu=True), Networks(model), learner, optimizer, batches, config)
    assert seeds[:4] == seeds[8:] and len(set(seeds)) == 8


def test_one_process_of_many_may_ask_for_a_stop() -> None:
    """What the others give is zero."""
    four = SimpleNamespace(device=torch.device("cpu"), reduce=lambda values, reduction: values / 4)
    metrics = {"coverage": torch.tensor(0.8), "tau_fg": torch.tensor(0.7)}
    found = _reduce(four, torch.tensor(2.0), metrics, True)  # type: ignore[arg-type]
    assert found == (0.5, {"coverage": pytest.approx(0.2)}, True)
    assert _reduce(four, torch.tensor(2.0), metrics, False)[2] is False  # type: ignore[arg-type]


def test_clipping_looks_at_the_whole_batch_not_at_its_parts(mini_root: Path) -> None:
    _, whole = moved(mini_root, "optim.grad_clip=0.1")
    _, parts = moved(mini_root, "optim.grad_clip=0.1", "accumulation=2")
    assert torch.allclose(whole, parts, atol=1e-5) and float(whole.norm()) == pytest.approx(0.1, rel=1e-3)


def test_bf16_moves_the_weights_nearly_alike(mini_root: Path) -> None:
    """Of the labelled loss: a pseudo-label on its threshold may fall to either side."""
    full, whole = moved(mini_root, "loss.lambda_unlabelled=0")
    half, rounded = moved(mini_root, "loss.lambda_unlabelled=0", "precision=bf16")
    assert half.loss != full.loss and half.loss == pytest.approx(full.loss, rel=0.02)
    assert float(torch.nn.functional.cosine_similarity(whole, rounded, dim=0)) > 0.9


@pytest.mark.parametrize("method", ["fixmatch", "l2l"])
def test_bf16_gives_a_gradient_to_all_that_float32_gives_one(mini_root: Path, method: str) -> None:
    """The passes without gradient come first: casts of weights that they left behind would cut the one with it."""
    _, whole = moved(mini_root, method=method)
    _, rounded = moved(mini_root, "precision=bf16", method=method)
    assert float(((whole != 0) & (rounded == 0)).float().mean()) <= 0.01


def test_variables_of_a_launcher_do_not_scale_the_gradient(
    mini_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate reads them, whatever it is given."""
    _, whole = moved(mini_root)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    _, launched = moved(mini_root)
    assert torch.equal(launched, whole)


@pytest.mark.slow
def test_a_compiled_network_takes_the_same_step(mini_root: Path) -> None:
    """Captured by torch.compile, without generated code: a weak view without fields, texts, and prior fields."""
    always = "l2l.field_probability=1"
    plain, whole = moved(mini_root, always, method="l2l")
    result, compiled = moved(mini_root, always, method="l2l", compiled=True)
    assert (
        result.loss == pytest.approx(plain.loss, rel=1e-5) and result.metrics.keys() == plain.metrics.keys()
    )
    assert torch.allclose(compiled, whole, atol=1e-5)


def burnt_in(
    root: Path, method: str, batch: Batch | None = None
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """What a step of the burn-in gives, and the whole network after it; with batch norms and dropout."""
    segmentor = segmentor_config(root / "tokenizer", sesm=method == "l2l", norm="batch")
    segmentor = dataclasses.replace(segmentor, second_branch=method == "ccvc")
    if method == "l2l":
        plain = mini_config(root, segmentor=segmentor)
    else:
        plain = plain_config(root, method, segmentor=segmentor)
    config = apply_overrides(plain, ["steps=4", "loss.burn_in_share=0.25"])
    model = model_of(config)
    optimizer = build_optimizer(model, config.optim, config.segmentor.loaded_parts)
    learner = METHODS[method](config)
    result = train_step(
        Accelerator(cpu=True), Networks(model), learner, optimizer, [batch or batch_of(config)], config
    )
    return result, model.state_dict()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "supervised"])
def test_the_burn_in_sees_labelled_samples_alone(mini_root: Path, method: str) -> None:
    """Other unlabelled images leave weights and running statistics as they are, and no pseudo-label is spoken of."""
    batch = batch_of(mini_config(mini_root) if method == "l2l" else plain_config(mini_root, method))
    assert batch.unlabelled is not None
    images = {name: 255 - getattr(batch.unlabelled, name) for name in ("weak_BHW3", "strong_BHW3")}
    other = dataclasses.replace(batch, unlabelled=dataclasses.replace(batch.unlabelled, **images))
    (result, one), (_, two) = (burnt_in(mini_root, method, one) for one in (batch, other))
    assert any(name.endswith("running_mean") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not result.pseudo and not result.shares
    assert set(result.metrics) == {"labelled_loss", "labelled_ce", "labelled_accuracy"}


@pytest.mark.parametrize("method", ["fixmatch", "augseg", "mllm_blend"])
def test_a_step_of_the_burn_in_is_one_of_the_supervised_method(mini_root: Path, method: str) -> None:
    (result, one), (plain, two) = (burnt_in(mini_root, name) for name in (method, "supervised"))
    assert result.loss == plain.loss and all(torch.equal(one[name], two[name]) for name in one)


def test_the_burn_in_shows_labelled_samples_their_fields(mini_root: Path) -> None:
    """As it would beside unlabelled samples; the thresholds rest, since nothing is labelled with them."""
    config = mini_config(mini_root)
    part, model = batch_of(config).labelled, model_of(config).eval()
    own = METHODS["l2l"](config)
    seen = own.labelled_only(Networks(model), part)
    blind = Method.labelled_only(own, Networks(model), part)
    assert seen.loss != blind.loss and seen.metrics.keys() == blind.metrics.keys()
    assert own.finish_step(lambda rows: rows) == {}
