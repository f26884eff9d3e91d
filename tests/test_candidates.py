"""Candidates from stage 1 to stage 2: written by a run, read by SemiRES."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from shared.config import DataConfig
from shared.refer import load_refer
from shared.runlog import read_records
from shared.store.reader import PriorStore
from stage1_priors.config import CanaryConfig, EngineConfig, MllmConfig, PriorsConfig
from stage1_priors.recipes import embedded
from stage1_priors.run import run_priors
from stage2_train.candidates import StoreCandidates
from stage2_train.config import RuntimeConfig, SemiresConfig
from stage2_train.train import train
from tests.stage1_priors.fake_engine import FakeEngine, write_model_folder
from tests.stage2_train.miniature import plain_config, write_data, write_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn data, and a store whose candidates the embedded `Sam2Model` has made; boxes are drawn at random."""
    root = tmp_path_factory.mktemp("candidates")
    write_data(root / "data")
    write_tokenizer(root / "tokenizer")
    proposer = embedded().proposer
    config = PriorsConfig(
        data=DataConfig(root=str(root / "data"), dataset="refshapes"),
        model=MllmConfig(path=str(write_model_folder(root / "model")), dtype="float32"),
        splits=("train",),
        engine=EngineConfig(chunk_rows=16),
        proposer=dataclasses.replace(proposer, candidates=dataclasses.replace(proposer.candidates, num=16)),
        canary=CanaryConfig(mode="skip"),
        cache_root=str(root / "stores"),
    )
    run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    return root


def test_every_sentence_is_given_the_candidates_of_its_image(root: Path) -> None:
    (path,) = (root / "stores").glob("*.zarr")
    dataset = load_refer(root / "data", "refshapes", "unc")
    samples = dataset.samples("train")
    found = StoreCandidates(PriorStore(path), SemiresConfig()).read(samples).numpy() >= 128
    assert found.shape == (len(samples), 16, 64, 64) and found.any((2, 3)).sum(1).min() > 4
    by_image = {sample.image_id: masks for sample, masks in zip(samples, found, strict=True)}
    assert len(by_image) < len(samples)
    best = []
    for sample, masks in zip(samples, found, strict=True):
        assert np.array_equal(masks, by_image[sample.image_id])
        truth = dataset.mask(sample)[1::2, 1::2]  # 128 x 128 pixels
        inter, union = (masks & truth).sum((1, 2)), (masks | truth).sum((1, 2))
        best.append((inter / np.maximum(union, 1)).max())
    assert np.mean(best) > 0.65


def test_semires_trains_on_them(root: Path, tmp_path: Path) -> None:
    config = plain_config(
        root,
        "semires",
        steps=2,
        semires=SemiresConfig(match="cpi", overlap=0.3),
        runtime=RuntimeConfig(log_every=1, tensorboard=False),
    )
    train(config, tmp_path / "run", quiet=True)
    records = [one for one in read_records(tmp_path / "run" / "metrics.jsonl") if "matched" in one]
    assert len(records) == 2 and any(one["matched"] > 0 for one in records)
