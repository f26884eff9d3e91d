"""Every sentence is scored once, in both frames, whoever answers."""

import dataclasses
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from shared.masks import resize_mask_nearest
from shared.refer import ReferDataset, load_refer
from stage2_train import scoring
from stage2_train.config import L2lConfig
from stage2_train.scoring import field_rule, score_samples, spaced, summarise
from stage2_train.spm import fuse
from stage2_train.store_choice import open_priors
from stage2_train.text import Tokenizer
from stage2_train.transforms import resize_prior, upsample
from tests.stage2_train.miniature import mini_config, segmentor_config, write_priors

SIZE_HW = (32, 32)


class Oracle(torch.nn.Module):
    """Answers with the true mask at the model's size, in the order the samples are asked."""

    def __init__(self, dataset: ReferDataset, samples: list, wrong: int = 0) -> None:
        super().__init__()
        self.answers = [
            torch.from_numpy(resize_mask_nearest(dataset.mask(s), SIZE_HW)).float() for s in samples
        ]
        for i in range(wrong):
            self.answers[i] = torch.zeros(SIZE_HW)
        self.asked, self.fields = 0, []

    def forward(self, image, ids, mask, field=None, rows=None):  # type: ignore[no-untyped-def]
        assert not self.training and not torch.is_grad_enabled() and field is None
        assert image.dtype == torch.float32 and image.shape[1:] == (3, *SIZE_HW)
        own = torch.stack(self.answers[self.asked : self.asked + len(image)])
        self.asked += len(image)
        return torch.stack((0.5 - own, own - 0.5), dim=1)


@pytest.fixture(scope="module")
def dataset(mini_root: Path) -> ReferDataset:
    return load_refer(mini_root / "data", "refshapes", "unc")


@pytest.fixture
def score(mini_root: Path, dataset: ReferDataset) -> Callable[..., list]:
    def run(model: torch.nn.Module, samples: list, **changes: Any) -> list[dict[str, Any]]:
        tokenise = Tokenizer(segmentor_config(mini_root / "tokenizer"))
        return score_samples(Accelerator(cpu=True), model, tokenise, dataset, samples, SIZE_HW, **changes)

    return run


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_it_came_in(
    score: Callable[..., list], dataset: ReferDataset, training: bool
) -> None:
    samples = dataset.samples("val")[:2]
    model = Oracle(dataset, samples).train(training)
    score(model, samples)
    assert model.training is training


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_perfect_answer_is_perfect_at_the_models_size(
    score: Callable[..., list], dataset: ReferDataset, batch: int
) -> None:
    samples = dataset.samples("val")
    rows = score(Oracle(dataset, samples).train(), samples, batch=batch)
    result = summarise(rows)
    assert result["model"]["oiou"] == result["model"]["miou"] == result["model"]["pr@0.9"] == 1.0
    assert 0.5 < result["original"]["miou"] < 1.0  # 32 x 32 cannot say everything about 128 x 128
    assert [row["sample_id"] for row in rows] == [sample.sample_id for sample in samples]


def test_oiou_and_miou_by_hand(score: Callable[..., list], dataset: ReferDataset) -> None:
    samples = dataset.samples("val")[:4]
    rows = score(Oracle(dataset, samples, wrong=2), samples)
    areas = [int(resize_mask_nearest(dataset.mask(s), SIZE_HW).sum()) for s in samples]
    result = summarise(rows)["model"]
    assert result["miou"] == 0.5 and result["pr@0.5"] == 0.5
    assert result["oiou"] == pytest.approx(sum(areas[2:]) / sum(areas))


def test_the_original_frame_upsamples_the_margin() -> None:
    margin = torch.tensor([[[-1.0, 3.0]]])
    assert torch.allclose(upsample(margin, (1, 4)), torch.tensor([[-1.0, 0.0, 2.0, 3.0]]))
    assert torch.equal(upsample(margin, (1, 2)), margin[0])


def test_one_half_is_foreground(score: Callable[..., list], dataset: ReferDataset) -> None:
    """Of a prediction as of the prior, of pseudo-labels and of exported masks."""
    samples = dataset.samples("val")[:1]
    model = Oracle(dataset, samples)
    model.answers[0] = torch.full(SIZE_HW, 0.5)
    assert score(model, samples)[0]["union_model"] == 32 * 32


def test_finding_nothing_is_right_where_nothing_is_named(dataset: ReferDataset) -> None:
    sample = dataset.samples("val")[0]
    for no_target, expected in ((True, 1.0), (False, 0.0)):
        item = SimpleNamespace(
            samples=(dataclasses.replace(sample, no_target=no_target),), masks=(np.zeros((8, 8), bool),)
        )
        (row,) = scoring._score_batch(item, {"": torch.full((1, 1, 4, 4), -1.0)}, (4, 4), False)  # type: ignore[arg-type]
        assert row["iou_original"] == row["iou_model"] == expected


def test_height_and_width_are_told_apart(dataset: ReferDataset) -> None:
    mask_hw = np.zeros((8, 12), bool)
    mask_hw[:, :4] = True
    item = SimpleNamespace(samples=tuple(dataset.samples("val")[:1]), masks=(mask_hw,))
    margin_B1HW = torch.full((1, 1, 4, 6), -1.0)
    margin_B1HW[..., :2] = 1.0
    (row,) = scoring._score_batch(item, {"": margin_B1HW}, (4, 6), False)  # type: ignore[arg-type]
    assert (row["inter_model"], row["union_model"]) == (8, 8)
    assert (row["inter_original"], row["union_original"]) == (32, 32)


def test_a_row_without_a_proposal_scores_as_an_empty_one(
    score: Callable[..., list], dataset: ReferDataset
) -> None:
    """Whatever its map holds."""
    samples = dataset.samples("val")[:2]
    proposals = torch.full((2, 4, 4), 255, dtype=torch.uint8), torch.tensor([True, False])
    prior = SimpleNamespace(read=lambda ids: proposals, trust=lambda ids: torch.full((2,), torch.nan))
    there, absent = score(Oracle(dataset, samples), samples, prior=prior)
    assert there["prior_union_model"] == 32 * 32
    assert absent["prior_inter_model"] == 0 and absent["prior_union_model"] < 32 * 32


def test_a_sentence_twice_is_refused(score: Callable[..., list], dataset: ReferDataset) -> None:
    samples = dataset.samples("val")[:2] * 2
    with pytest.raises(AssertionError):
        score(Oracle(dataset, samples), samples)


def test_the_priors_own_score_stands_beside(
    mini_root: Path, tmp_path: Path, dataset: ReferDataset, score: Callable[..., list]
) -> None:
    samples = dataset.samples("val")
    path = write_priors(tmp_path / "val.zarr", dataset, splits=("val",))
    prior = open_priors(path, mini_config(mini_root), dataset, samples)
    model = Oracle(dataset, samples)
    rows = score(model, samples, prior=prior)
    result = summarise(rows)
    assert 0.3 < result["prior"]["original"]["miou"] < 1.0
    proposal, has = prior.read([samples[0].sample_id])
    prob = torch.nn.functional.interpolate(proposal[None].float() / 255, size=(128, 128), mode="bilinear")[
        0, 0
    ]
    pred = (prob >= 0.5).numpy() & bool(has)
    true = dataset.mask(samples[0])
    assert rows[0]["prior_inter_original"] == int((pred & true).sum())
    assert rows[0]["prior_union_original"] == int((pred | true).sum())
    missing = [
        row for row, sample in zip(rows, samples, strict=True) if not prior.read([sample.sample_id])[1]
    ]
    assert missing and all(row["prior_inter_original"] == 0 for row in missing)
    assert summarise(score(Oracle(dataset, samples), samples))["prior"] is None


@pytest.mark.parametrize(("num", "expected"), [(5, 1), (7, 2), (1, 0)])
def test_processes_with_unequal_shares_are_asked_equally_often(
    mini_root: Path, dataset: ReferDataset, monkeypatch: pytest.MonkeyPatch, num: int, expected: int
) -> None:
    """`before_batch` may wait for the other processes, of which the first has a batch more."""

    class Shared(Exception):
        pass

    def gather(rows: list) -> list:
        raise Shared

    monkeypatch.setattr(scoring, "gather_object", gather)
    samples, tokenise = dataset.samples("val")[:num], Tokenizer(segmentor_config(mini_root / "tokenizer"))
    for rank in (0, 1):
        asked: list[int] = []
        own = list(np.array_split(np.arange(num), 2)[rank])
        two = SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu"))
        model = Oracle(dataset, [samples[i] for i in own]) if own else torch.nn.Identity()
        with pytest.raises(Shared):
            score_samples(
                two,  # type: ignore[arg-type]
                model,
                tokenise,
                dataset,
                samples,
                SIZE_HW,
                batch=2,
                before_batch=partial(asked.append, rank),
            )
        assert len(asked) == expected


def test_what_readers_are_sent_grows_with_what_is_scored(dataset: ReferDataset) -> None:
    """Not with the data set it is of: all processes' readers are sent theirs at every validation."""

    def size(of: ReferDataset, samples: list) -> int:
        return len(pickle.dumps(scoring._EvalReader(of, samples, SIZE_HW, len, None, 2)))  # type: ignore[arg-type]

    some, everything = dataset.samples("val")[:4], dataset.samples()
    assert size(dataset, some) == size(dataset.only(some), some)
    assert size(dataset, some) < len(pickle.dumps(dataset)) / len(everything) * len(some) * 1.5 + 1000
    assert size(dataset, everything) > len(pickle.dumps(dataset))


def test_lengths_are_counted_once(score: Callable[..., list], dataset: ReferDataset) -> None:
    samples = dataset.samples("val")
    by_length = summarise(score(Oracle(dataset, samples), samples))["by_length"]
    assert sum(bucket["num"] for bucket in by_length.values()) == len(samples)
    short = sum(len(sample.expression.split()) <= 2 for sample in samples)
    assert by_length.get("1-2", {"num": 0})["num"] == short


def scored(sample_id: str, words: int, model: tuple, original: tuple, **more: Any) -> dict[str, Any]:
    row = {"sample_id": sample_id, "expression": " ".join(["word"] * words), **more}
    for frame, (inter, union) in (("model", model), ("original", original)):
        row |= {f"inter_{frame}": inter, f"union_{frame}": union, f"iou_{frame}": inter / max(union, 1)}
    return row


def test_lengths_by_hand() -> None:
    """Bounds are of the shorter ones, and scores those at the original size."""
    rows = [
        scored("a", 2, (1, 4), (3, 4)),
        scored("b", 3, (1, 4), (2, 4)),
        scored("c", 11, (1, 4), (1, 4)),
        scored("d", 12, (1, 4), (4, 4)),
    ]
    by_length = summarise(rows)["by_length"]
    found = {name: (one["num"], one["oiou"]) for name, one in by_length.items()}
    assert found == {"1-2": (1, 0.75), "3-4": (1, 0.5), "8-11": (1, 0.25), "12+": (1, 1.0)}


def test_sentences_that_name_nothing_have_their_own_rule() -> None:
    rows = [scored("a", 2, (1, 4), (3, 4)), scored("b", 2, (0, 0), (0, 0), no_target=True)]
    result = summarise(rows)["original"]
    assert result["miou"] == (0.75 + 1) / 2 and result["no_target_acc"] == 1.0


def test_some_are_taken_from_all_of_the_split() -> None:
    assert spaced(list(range(10)), 3) == [0, 3, 6]  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(("limit", "kept"), [(0, 10), (10, 10), (99, 10), (5, 5), (3, 3), (1, 1)])
def test_spaced(limit: int, kept: int) -> None:
    chosen = spaced(list(range(10)), limit)  # type: ignore[arg-type]
    assert len(chosen) == len(set(chosen)) == kept


class Listener(torch.nn.Module):
    """Answers the same whatever it is asked, and keeps the fields it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.logit_2HW = torch.randn(2, *SIZE_HW, generator=torch.Generator().manual_seed(0))

    def forward(self, image, ids, mask, field=None, rows=None):  # type: ignore[no-untyped-def]
        if field is not None:
            rows = torch.arange(len(image)) if rows is None else rows
            self.given.append((field, torch.zeros(len(image), dtype=torch.bool).index_fill(0, rows, True)))
        return self.logit_2HW.expand(len(image), -1, -1, -1)


def test_self_guided_the_network_sees_where_it_found_the_object(
    score: Callable[..., list], dataset: ReferDataset
) -> None:
    samples, model = dataset.samples("val")[:3], Listener()
    rows = score(model, samples, self_guided=True)
    ((field_B1HW, on_B),) = model.given
    assert on_B.all() and torch.equal(field_B1HW, model.logit_2HW.softmax(0)[None, 1:].expand(3, -1, -1, -1))
    assert all(row["self_guided_iou_model"] == row["iou_model"] for row in rows)


def test_with_prior_the_network_sees_what_it_saw_in_training(
    mini_root: Path, tmp_path: Path, dataset: ReferDataset, score: Callable[..., list]
) -> None:
    """The fused prior, and nothing where the row has no proposal."""
    samples, config = dataset.samples("val"), mini_config(mini_root)
    prior = open_priors(
        write_priors(tmp_path / "val.zarr", dataset, splits=("val",)), config, dataset, samples
    )
    model = Listener()
    score(model, samples, prior=prior, with_prior=field_rule(config))
    proposal_BGG, has_B = prior.read([sample.sample_id for sample in samples])
    weak_B1HW = model.logit_2HW.softmax(0)[None, 1:].expand(len(samples), -1, -1, -1)
    expected, _ = fuse(resize_prior(proposal_BGG, *SIZE_HW), weak_B1HW, config.spm)
    field_B1HW, on_B = (torch.cat(parts) for parts in zip(*model.given, strict=True))
    assert torch.equal(on_B, has_B) and 0 < int(has_B.sum()) < len(samples)
    assert torch.allclose(field_B1HW[on_B], expected[on_B], atol=1e-6)
    without_spm = dataclasses.replace(config, l2l=L2lConfig(use_spm=False, band_px=0))
    score(model := Listener(), samples, prior=prior, with_prior=field_rule(without_spm))
    field_B1HW = torch.cat([field for field, _ in model.given])
    assert torch.equal(field_B1HW[has_B], resize_prior(proposal_BGG, *SIZE_HW)[has_B])
