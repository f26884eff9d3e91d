import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from shared.errors import DataError
from shared.masks import resize_mask_nearest
from shared.refer import ReferDataset, load_refer
from stage2_train import evaluate
from stage2_train.config import L2lConfig, RuntimeConfig
from stage2_train.evaluate import (
    _prior_for,
    evaluate_run,
    field_rule,
    score_samples,
    spaced,
    summarise,
    upsample,
)
from stage2_train.prior_source import open_priors
from stage2_train.spm import fuse
from stage2_train.text import Tokenizer
from stage2_train.train import train
from stage2_train.transforms import resize_prior
from tests.stage2_train.miniature import mini_config, plain_config, segmentor_config, write_priors

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

    def forward(self, image, ids, mask, field=None, field_on=None):  # type: ignore[no-untyped-def]
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


@pytest.mark.parametrize(("num", "expected"), [(5, 1), (1, 0)])
def test_processes_with_unequal_shares_are_asked_equally_often(
    mini_root: Path, dataset: ReferDataset, monkeypatch: pytest.MonkeyPatch, num: int, expected: int
) -> None:
    """`before_batch` may wait for the other processes, of which the first has a batch more."""

    class Shared(Exception):
        pass

    def gather(rows: list) -> list:
        raise Shared

    monkeypatch.setattr(evaluate, "gather_object", gather)
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


def test_lengths_are_counted_once(score: Callable[..., list], dataset: ReferDataset) -> None:
    samples = dataset.samples("val")
    by_length = summarise(score(Oracle(dataset, samples), samples))["by_length"]
    assert sum(bucket["num"] for bucket in by_length.values()) == len(samples)
    short = sum(len(sample.expression.split()) <= 2 for sample in samples)
    assert by_length.get("1-2", {"num": 0})["num"] == short


@pytest.mark.parametrize(("limit", "kept"), [(0, 10), (10, 10), (99, 10), (5, 5), (3, 3), (1, 1)])
def test_spaced(limit: int, kept: int) -> None:
    chosen = spaced(list(range(10)), limit)  # type: ignore[arg-type]
    assert len(chosen) == len(set(chosen)) == kept


@pytest.fixture(scope="module")
def finished(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    runtime = RuntimeConfig(log_every=1, tensorboard=False)
    train(mini_config(mini_root, steps=1, runtime=runtime), out, quiet=True)
    return out


def test_evaluate_run_writes_both_files(finished: Path, dataset: ReferDataset) -> None:
    result = evaluate_run(finished, "val")
    assert json.loads((finished / "eval" / "val.json").read_text()) == result
    rows = [json.loads(line) for line in (finished / "eval" / "val.jsonl").read_text().splitlines()]
    samples = dataset.samples("val")
    assert [row["sample_id"] for row in rows] == [s.sample_id for s in samples] and result["num"] == len(
        samples
    )
    assert result["resolution"] == [32, 32] and result["prior"] is None and "no row" in result["prior_note"]
    from pycocotools import mask as coco_mask

    for row, sample in zip(rows, samples, strict=True):
        pred = coco_mask.decode({**row["pred_rle"], "counts": row["pred_rle"]["counts"].encode()}).astype(
            bool
        )
        true = dataset.mask(sample)
        assert (int((pred & true).sum()), int((pred | true).sum())) == (
            row["inter_original"],
            row["union_original"],
        )


def test_evaluation_is_repeatable_and_does_not_depend_on_the_batch(finished: Path) -> None:
    one = evaluate_run(finished, "testA", batch=3, write=False)
    two = evaluate_run(finished, "testA", batch=64, write=False)
    assert one["model"]["miou"] == pytest.approx(two["model"]["miou"], abs=2e-3)
    assert not (finished / "eval" / "testA.json").exists()


def test_self_guided_is_reported_beside(finished: Path) -> None:
    plain = evaluate_run(finished, "val", write=False)
    both = evaluate_run(finished, "val", write=False, self_guided=True)
    assert "self_guided" not in plain and both["original"] == plain["original"]
    assert both["self_guided"]["original"]["num"] == plain["num"]


class Listener(torch.nn.Module):
    """Answers the same whatever it is asked, and keeps the fields it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.logit_2HW = torch.randn(2, *SIZE_HW, generator=torch.Generator().manual_seed(0))

    def forward(self, image, ids, mask, field=None, field_on=None):  # type: ignore[no-untyped-def]
        if field is not None:
            self.given.append((field, field_on))
        return self.logit_2HW.expand(len(image), -1, -1, -1)


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


@pytest.mark.parametrize("model", ["a", "b"])
def test_a_wider_store_made_alike_gives_the_priors_score(
    mini_root: Path, tmp_path: Path, dataset: ReferDataset, model: str
) -> None:
    """The run's own store has rows to train on alone; one by another model would be another prior."""
    config = mini_config(mini_root, cache_root=str(tmp_path))
    own = write_priors(tmp_path / "own.zarr", dataset, fingerprint="own", model="a")
    wide = write_priors(
        tmp_path / "wide.zarr", dataset, fingerprint="wide", splits=("train", "val"), model=model
    )
    (tmp_path / "config.json").write_text(json.dumps({"store": {"path": str(own)}}))
    reader, note = _prior_for(tmp_path, config, dataset, dataset.samples("val"), "")
    if model == "a":
        assert reader is not None and note == f"from {wide}"
    else:
        assert reader is None and "no row for sample" in note


def test_with_prior_is_another_method_reported_beside(
    finished: Path, tmp_path: Path, dataset: ReferDataset
) -> None:
    path = write_priors(tmp_path / "all.zarr", dataset, splits=("train", "val"), fingerprint="d" * 16)
    plain = evaluate_run(finished, "val", store=str(path), write=False)
    both = evaluate_run(finished, "val", store=str(path), write=False, with_prior=True)
    assert "with_prior" not in plain
    assert all(both[name] == plain[name] for name in ("original", "model", "prior", "by_length"))
    assert both["with_prior"]["original"]["num"] == plain["num"]
    with pytest.raises(DataError, match="no pass with a prior on val: no prior score: .*no row"):
        evaluate_run(finished, "val", write=False, with_prior=True)


def test_the_store_changes_nothing_but_the_priors_score(
    finished: Path, tmp_path: Path, dataset: ReferDataset
) -> None:
    path = write_priors(tmp_path / "all.zarr", dataset, splits=("train", "val"), fingerprint="d" * 16)
    with_store = evaluate_run(finished, "val", store=str(path), write=False)
    without = evaluate_run(finished, "val", write=False)
    assert with_store["prior"]["original"]["miou"] > 0.3 and without["prior"] is None
    assert with_store["original"] == without["original"] and with_store["model"] == without["model"]
    with pytest.raises(DataError, match="no row for sample"):
        evaluate_run(finished, "testA", store=str(path), write=False)


def test_refusals(finished: Path, mini_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'nope'"):
        evaluate_run(finished, "nope")
    with pytest.raises(DataError, match="config.json"):
        evaluate_run(tmp_path / "nowhere", "val")
    runtime = RuntimeConfig(tensorboard=False)
    train(plain_config(mini_root, "supervised", steps=1, runtime=runtime), tmp_path / "plain", quiet=True)
    for option in ("self_guided", "with_prior"):
        with pytest.raises(DataError, match="without sesm"):
            evaluate_run(tmp_path / "plain", "val", **{option: True})
    unused = mini_config(mini_root, steps=1, runtime=runtime, l2l=L2lConfig(field_probability=0.0, band_px=0))
    train(unused, tmp_path / "unused", quiet=True)
    with pytest.raises(DataError, match="never saw a field in training"):
        evaluate_run(tmp_path / "unused", "val", self_guided=True)
    (tmp_path / "plain" / "model" / "config.json").unlink()
    with pytest.raises(DataError, match="no finished model"):
        evaluate_run(tmp_path / "plain", "val")


def test_limit_scores_a_part(finished: Path) -> None:
    assert evaluate_run(finished, "val", limit=3, write=False)["num"] == 3


def test_scores_of_other_data_are_not_filed_as_the_runs_own(
    finished: Path, mini_root: Path, dataset: ReferDataset, tmp_path: Path
) -> None:
    run, grown = tmp_path / "run", tmp_path / "grown"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "eval", ignore_errors=True)
    shutil.copytree(mini_root / "data", grown)
    moved = evaluate_run(run, "val", root=str(grown), limit=2, write=False)
    assert moved["data"]["annotations"] == dataset.fingerprint() and moved["shared_with_train"] == 0
    path = next((grown / "refshapes").glob("instances*.json"))
    document = json.loads(path.read_text())
    first = document["annotations"][0]
    first["bbox"] = [first["bbox"][0], first["bbox"][1], first["bbox"][2] + 1, first["bbox"][3]]
    refs = grown / "refshapes" / "refs(unc).json"
    if refs.is_file():
        rows = json.loads(refs.read_text())
        rows[0]["sentences"][0]["raw"] = rows[0]["sentences"][0]["sent"] = "something else"
        refs.write_text(json.dumps(rows))
    path.write_text(json.dumps(document))
    with pytest.raises(
        DataError, match=r"run: was trained on other annotations than those in .*grown .*--data-name"
    ):
        evaluate_run(run, "val", root=str(grown))
    with pytest.raises(DataError, match="data name '../x'"):
        evaluate_run(run, "val", root=str(grown), data_name="../x")
    assert not (run / "eval").exists()
    result = evaluate_run(run, "val", root=str(grown), data_name="later")
    assert [file.name for file in sorted((run / "eval").iterdir())] == ["later-val.json", "later-val.jsonl"]
    assert result["split"] == "later-val" and result["data"]["annotations"] != dataset.fingerprint()
    said = {name: result["data"][name] for name in ("name", "split", "root", "dataset")}
    assert said == {"name": "later", "split": "val", "root": str(grown), "dataset": "refshapes"}
    assert result["shared_with_train"] == 0, "counted in what it was trained on, which lies where it lay"
