"""Configurations that must give the same gradients, and information that must not reach them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.refer import MaskAccessError, ReferDataset, load_refer
from shared.runlog import read_records
from stage2_train.alarm import AlarmConfig
from stage2_train.batch import Batch, UnlabelledPart
from stage2_train.batch_source import BatchSource
from stage2_train.checkpoint import list_checkpoints, load_weights
from stage2_train.config import RuntimeConfig, SampleLossConfig, TrainConfig
from stage2_train.method_facts import METHOD_FACTS
from stage2_train.methods import METHODS
from stage2_train.networks import Networks
from stage2_train.train import train
from stage2_train.transforms import WeakConfig, mirror_words
from tests.stage2_train.miniature import batch_of, mini_config, model_of, plain_config, segmentor_config
from tests.stage2_train.test_train import assert_same_end


def without_dropout(config: TrainConfig, root: Path) -> TrainConfig:
    has_sesm = config.segmentor.sesm is not None
    bare = segmentor_config(root / "tokenizer", sesm=has_sesm, dropout=0.0)
    return dataclasses.replace(
        config, segmentor=dataclasses.replace(bare, second_branch=config.segmentor.second_branch)
    )


def gradients(config: TrainConfig, batches: list[Batch]) -> dict[str, torch.Tensor]:
    model = model_of(config).to(torch.get_default_dtype())
    method = METHODS[config.method](config)
    for batch in batches:
        (method.loss(Networks(model), batch).loss / len(batches)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def config_of(root: Path, method: str) -> TrainConfig:
    return without_dropout(mini_config(root) if method == "l2l" else plain_config(root, method), root)


@pytest.fixture
def double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that is computed is float64, also where the code asks for float32: what is left of rounding is no matter."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def as_double(value: Any) -> Any:
    """A batch, or a part of one, with its floating-point tensors as float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: as_double(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulating_micro_batches_equals_one_batch(mini_root: Path, method: str, accumulation: int) -> None:
    """k micro-batches of b have the gradient of one batch of k*b, up to the order of additions."""
    whole = config_of(mini_root, method)
    parts = dataclasses.replace(whole, accumulation=accumulation)
    one = gradients(whole, [as_double(batch_of(whole, 1))])
    many = gradients(
        parts, [as_double(batch_of(parts, accumulation + micro)) for micro in range(accumulation)]
    )
    assert one.keys() == many.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    for name in one:
        scale = float(one[name].abs().max()) + 0.01 * largest  # some gradients are zero but for rounding
        assert float((one[name] - many[name]).abs().max()) <= 1e-9 * scale, name


@pytest.mark.parametrize("method", [n for n, facts in METHOD_FACTS.items() if facts.reads_unlabelled])
def test_zero_unlabelled_weight_gives_no_gradient_from_unlabelled(mini_root: Path, method: str) -> None:
    """With lambda_u = 0 the unlabelled images and priors can be anything."""
    base = config_of(mini_root, method)
    config = dataclasses.replace(base, loss=SampleLossConfig(lambda_unlabelled=0.0))
    batch = batch_of(config)
    assert batch.unlabelled is not None
    noise = dataclasses.replace(
        batch.unlabelled,
        weak_BHW3=255 - batch.unlabelled.weak_BHW3,
        strong_BHW3=255 - batch.unlabelled.strong_BHW3,
        prior_B1HW=None if batch.unlabelled.prior_B1HW is None else 1 - batch.unlabelled.prior_B1HW,
    )
    one, other = gradients(config, [batch]), gradients(config, [dataclasses.replace(batch, unlabelled=noise)])
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    weighted = dataclasses.replace(config, loss=SampleLossConfig(lambda_unlabelled=1.0))
    changed = gradients(weighted, [dataclasses.replace(batch, unlabelled=noise)])
    same = gradients(weighted, [batch])
    assert any(not torch.allclose(same[name], changed[name], atol=1e-6) for name in same)


def test_image_mask_prior_and_words_flip_together(mini_root: Path) -> None:
    """A source that always flips is the mirror image of one that never does, and so are its texts."""
    base = mini_config(mini_root)
    texts: dict[float, list[str]] = {}
    batches = {}
    for probability in (0.0, 1.0):
        config = dataclasses.replace(base, weak=WeakConfig(flip_probability=probability))
        with pytest.MonkeyPatch.context() as patch:
            texts[probability] = _recorded_texts(patch)
            batches[probability] = [batch_of(config, key) for key in range(4)][0]
    never, always = batches[0.0], batches[1.0]
    for name, columns in (("image_BHW3", 2), ("target_BHW", 2), ("prior_B1HW", 3)):
        assert torch.equal(getattr(never.labelled, name).flip(columns), getattr(always.labelled, name)), name
    for name, columns in (("weak_BHW3", 2), ("prior_B1HW", 3)):
        assert torch.equal(getattr(never.unlabelled, name).flip(columns), getattr(always.unlabelled, name)), (
            name
        )
    assert [mirror_words(text) for text in texts[0.0]] == texts[1.0] != texts[0.0]
    assert always.labelled.flip_B.all() and not never.labelled.flip_B.any()


def _recorded_texts(patch: pytest.MonkeyPatch) -> list[str]:
    """Weak texts handed to the text augmentation."""
    from stage2_train import batch_source

    seen: list[str] = []
    real = batch_source.draw_candidates

    def spy(text: str, *rest: Any) -> Any:
        seen.append(text)
        return real(text, *rest)

    patch.setattr(batch_source, "draw_candidates", spy)
    return seen


class LyingMasks:
    """A data set whose masks of unlabelled images are turned inside out."""

    def __init__(self, dataset: ReferDataset, honest: set[int]) -> None:
        self._dataset, self._honest = dataset, honest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def mask(self, sample: Any) -> np.ndarray:
        mask = self._dataset.mask(sample)
        return mask if sample.image_id in self._honest or sample.split != "train" else ~mask

    def without_masks(self, keep: Any) -> Any:
        return LyingMasks(self._dataset.without_masks(keep), self._honest)


HIDDEN_FIGURES = {"prior_iou", "weak_iou", "fused_iou", "selected_accuracy", "foreground_recall", "seconds"}
HIDDEN_FIGURES |= {"disputed", "disputed_prior_right", "disputed_taught", "disputed_taught_right"}
"""What the log takes from held-back masks, and the clock."""


@pytest.mark.parametrize(
    "method",
    [n for n, facts in METHOD_FACTS.items() if facts.reads_unlabelled and not facts.reads_weak_label],
)
def test_masks_of_unlabelled_samples_change_nothing_but_the_log_of_them(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Network, average, optimiser, thresholds and policy, strikes of the alarm, and every other figure of the log."""
    from stage2_train import inputs

    changes = {
        "steps": 2,
        "runtime": RuntimeConfig(log_every=1, tensorboard=False, log_with_hidden_masks=True),
        "alarm": AlarmConfig(patience=9, grace_steps=0, min_coverage=0.9, min_foreground=0.3),
    }
    make = mini_config if method == "l2l" else functools.partial(plain_config, method=method)
    config = make(mini_root, **changes)
    train(config, tmp_path / "honest", quiet=True)
    honest = set(inputs.open_inputs(config).split.image_ids)
    real: Callable[..., ReferDataset] = inputs.load_dataset
    monkeypatch.setattr(inputs, "load_dataset", lambda data: LyingMasks(real(data), honest))
    train(config, tmp_path / "lying", quiet=True)
    assert_same_end(tmp_path / "honest", tmp_path / "lying")
    logs = [read_records(tmp_path / name / "metrics.jsonl") for name in ("honest", "lying")]
    for a, b in zip(*logs, strict=True):
        assert {n: v for n, v in a.items() if n not in HIDDEN_FIGURES} == {
            n: v for n, v in b.items() if n not in HIDDEN_FIGURES
        }
        assert a["weak_iou"] != b["weak_iou"]  # the masks did differ, and the log looked at them


def test_weak_labels_are_all_that_a_mask_gives_omni_res(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other masks with the same boxes give the same network; other boxes do not."""
    from stage2_train import inputs

    config = plain_config(mini_root, "omni_res", steps=2, runtime=RuntimeConfig(tensorboard=False))
    train(config, tmp_path / "honest", quiet=True)
    honest = set(inputs.open_inputs(config).split.image_ids)
    real: Callable[..., ReferDataset] = inputs.load_dataset
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "load_dataset", lambda data: LyingMasks(real(data), honest))
        train(config, tmp_path / "lying", quiet=True)
    corner = np.array([0.0, 0.0, 9.0, 9.0], dtype=np.float32)
    monkeypatch.setattr(ReferDataset, "box_xyxy_px", lambda self, sample: corner)
    train(config, tmp_path / "boxes", quiet=True)
    one, two, other = (
        load_weights(list_checkpoints(tmp_path / name / "checkpoints")[-1], "model")
        for name in ("honest", "lying", "boxes")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_batch_of_unlabelled_samples_has_no_place_for_a_mask(mini_root: Path) -> None:
    source = _source_of(mini_config(mini_root))
    names = {field.name for field in dataclasses.fields(UnlabelledPart)}
    assert not any("target" in name or name.startswith("mask") for name in names)
    with pytest.raises(MaskAccessError):
        source.reader.dataset.mask(source.split.unlabelled[0][0])
    with pytest.raises(MaskAccessError):
        source.reader.dataset.box_xyxy_px(source.split.unlabelled[0][0])


def _source_of(config: TrainConfig) -> BatchSource:
    found: list[BatchSource] = []
    real = BatchSource.__call__

    def spy(self: BatchSource, key: int) -> Batch:
        found.append(self)
        return real(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchSource, "__call__", spy)
        batch_of(config)
    return found[0]


def test_the_data_may_be_read_again_without_change(mini_root: Path) -> None:
    """Loading the data set twice gives equal batches: nothing depends on object identity or dict order."""
    config = mini_config(mini_root)
    assert load_refer(mini_root / "data", "refshapes", "unc").fingerprint()
    a, b = batch_of(config, 3), batch_of(config, 3)
    assert (
        torch.equal(a.labelled.image_BHW3, b.labelled.image_BHW3) and a.labelled.samples == b.labelled.samples
    )
