"""Candidate masks: out of a store's own array, or out of the proposals of an image's rows."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.config import apply_overrides
from shared.errors import DataError
from shared.refer import load_refer
from shared.store.reader import PriorStore
from shared.store.schema import FieldSpec
from stage2_train import dry_run
from stage2_train.candidates import StoreCandidates, distinct_masks
from stage2_train.config import SemiresConfig
from stage2_train.inputs import open_inputs, say_no_candidates
from stage2_train.transforms import WeakConfig
from tests.stage2_train.miniature import GRID, NO_BOX_EVERY, batch_of, mini_config, plain_config, write_priors


def store_of(root: Path) -> PriorStore:
    return PriorStore(root / "stores" / "refshapes.test.zarr")


def test_distinct_masks_by_hand() -> None:
    soft = np.zeros((5, 2, 2), np.uint8)
    soft[0, 0] = 255  # upper row
    soft[1, 0] = (255, 200)  # the same mask
    soft[2] = 127  # nothing reaches one half
    soft[3] = 255  # everything: IoU with the upper row is one half
    soft[4, 1] = 128  # lower row
    assert distinct_masks(soft, 0.8) == [0, 3, 4]
    assert distinct_masks(soft, 0.5) == [0, 4]


def test_candidates_of_an_image_come_from_all_its_rows(mini_root: Path) -> None:
    samples = load_refer(mini_root / "data", "refshapes", "unc").samples("train")
    store = store_of(mini_root)
    reader = StoreCandidates(store, SemiresConfig(same_iou=1.0, max_candidates=40))
    image = samples[0].image_id
    rows = [i for i, s in enumerate(samples) if s.image_id == image and i % NO_BOX_EVERY != NO_BOX_EVERY - 1]
    own = {row.tobytes() for row in store.batch("proposal", rows) >= 128 if row.any()}
    found = reader.read([s for s in samples if s.image_id == image])
    assert all(torch.equal(found[0], other) for other in found)  # they do not say which row asked
    masks = [mask for mask in found[0].numpy() >= 128 if mask.any()]
    assert {mask.tobytes() for mask in masks} == own and len(masks) == len(own) > 1


def test_a_store_without_candidates_is_noted(mini_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = apply_overrides(mini_config(mini_root), ["method=semires", "ema.decay=0.9", "ema.teacher=true"])
    say_no_candidates(config, open_inputs(config, quiet=True))
    said = capsys.readouterr().err
    assert (
        "refshapes.test.zarr holds no candidate masks: semires matches" in said
        and "candidates.num=16" in said
    )
    plain = mini_config(mini_root)
    say_no_candidates(plain, open_inputs(plain, quiet=True))
    assert not capsys.readouterr().err


def test_a_dry_run_notes_it_even_without_a_tokenizer(
    mini_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_tokenizer(*_arguments: object) -> None:
        raise DataError("no tokenizer")

    monkeypatch.setattr(dry_run, "say_lost_text", no_tokenizer)
    config = apply_overrides(mini_config(mini_root), ["method=semires", "ema.decay=0.9", "ema.teacher=true"])
    dry_run.describe(config)
    assert "holds no candidate masks: semires matches" in capsys.readouterr().err


def test_candidates_are_padded_and_cut(mini_root: Path) -> None:
    samples = load_refer(mini_root / "data", "refshapes", "unc").samples("train")[:3]
    for num in (1, 5, 50):
        found = StoreCandidates(store_of(mini_root), SemiresConfig(max_candidates=num)).read(samples)
        assert found.shape == (3, num, GRID, GRID) and found.dtype == torch.uint8
    assert not found[0, -1].any()


def test_an_image_without_proposals_has_no_candidates(mini_root: Path) -> None:
    sample = load_refer(mini_root / "data", "refshapes", "unc").samples("train")[0]
    unknown = dataclasses.replace(sample, image_id=10**6)
    assert not StoreCandidates(store_of(mini_root), SemiresConfig()).read([unknown]).any()


def with_field(root: Path, tmp_path: Path, spec: FieldSpec, values: np.ndarray, monkeypatch) -> PriorStore:  # type: ignore[no-untyped-def]
    from tests.stage2_train import miniature

    real_fields, real_write = miniature.prior_fields, miniature.write_shard
    monkeypatch.setattr(miniature, "prior_fields", lambda grid: (*real_fields(grid), spec))
    monkeypatch.setattr(
        miniature,
        "write_shard",
        lambda path, shard, arrays, status: real_write(path, shard, arrays | {spec.name: values}, status),
    )
    dataset = load_refer(root / "data", "refshapes", "unc")
    return PriorStore(write_priors(tmp_path / "with.zarr", dataset))


def test_a_stored_array_is_read_as_it_is(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = load_refer(mini_root / "data", "refshapes", "unc").samples("train")
    values = np.random.default_rng(0).integers(0, 256, (len(samples), 3, 8, 8), dtype=np.uint8)
    spec = FieldSpec(name="candidates", dtype="uint8", row_shape=(3, 8, 8), chunk="row")
    store = with_field(mini_root, tmp_path, spec, values, monkeypatch)
    reader = pickle.loads(pickle.dumps(StoreCandidates(store, SemiresConfig(max_candidates=4))))
    # Those of an image lie in its first row.
    images = [sample.image_id for sample in samples]
    last = len(samples) - 1
    assert images[1] == images[0] and images.index(images[last]) < last
    found = reader.read([samples[last], samples[1]]).numpy()
    assert np.array_equal(found[:, :3], values[[images.index(images[last]), 0]]) and not found[:, 3].any()
    cut = StoreCandidates(store, SemiresConfig(max_candidates=2)).read([samples[1]]).numpy()
    assert np.array_equal(cut[0], values[0, :2])


def test_an_array_of_another_shape_is_refused(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = len(load_refer(mini_root / "data", "refshapes", "unc").samples("train"))
    spec = FieldSpec(name="candidates", dtype="uint8", row_shape=(8, 8), chunk="row")
    store = with_field(mini_root, tmp_path, spec, np.zeros((num, 8, 8), np.uint8), monkeypatch)
    with pytest.raises(DataError, match=r"with\.zarr: candidates has rows of uint8 \(8, 8\)"):
        StoreCandidates(store, SemiresConfig())


def test_candidates_flip_with_the_image(mini_root: Path) -> None:
    base = plain_config(mini_root, "semires")
    never, always = (
        batch_of(dataclasses.replace(base, weak=WeakConfig(flip_probability=p))).unlabelled
        for p in (0.0, 1.0)
    )
    assert never.candidates_BMHW.dtype == torch.bool and never.candidates_BMHW.shape[2:] == (32, 32)
    assert torch.equal(never.candidates_BMHW.flip(-1), always.candidates_BMHW)
    assert never.candidates_BMHW.any() and never.prior_B1HW is None
