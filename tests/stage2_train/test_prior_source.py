import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.refer import load_refer
from shared.store.reader import PriorStore
from stage2_train.inputs import open_inputs
from stage2_train.prior_source import MisplacedPriors, StorePriors
from stage2_train.store_choice import choose_store, open_priors
from tests.stage2_train.miniature import NO_BOX_EVERY, mini_config, write_priors


def test_rows_without_a_box_are_flagged(mini_root: Path) -> None:
    config = mini_config(mini_root)
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    samples = dataset.samples("train")
    priors = open_priors(choose_store(config, dataset), config, dataset, samples)
    _, has = priors.read([sample.sample_id for sample in samples])
    assert has.tolist() == [row % NO_BOX_EVERY != NO_BOX_EVERY - 1 for row in range(len(samples))]


def test_trust_is_the_same_whatever_else_the_store_holds(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    ids = [sample.sample_id for sample in dataset.samples("train")]
    of_val = [sample.sample_id for sample in dataset.samples("val")]
    narrow, wide, foreign = (
        StorePriors(PriorStore(write_priors(tmp_path / f"{number}.zarr", dataset, splits=splits)))
        for number, splits in enumerate((("train",), ("train", "val"), ("val",)))
    )
    assert np.array_equal(narrow.trust(ids).numpy(), wide.trust(ids).numpy(), equal_nan=True)
    assert np.nanmean(foreign.trust(of_val).numpy()) == pytest.approx(0.5), (
        "without training rows, among its own"
    )


def test_trust_is_the_rank_of_a_rows_confidence(mini_root: Path) -> None:
    config = mini_config(mini_root)
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    samples = dataset.samples("train")
    priors = open_priors(choose_store(config, dataset), config, dataset, samples)
    ids = [sample.sample_id for sample in samples]
    own = priors.store.column("confidence")[priors.store.rows_of(ids)]
    known = own[np.isfinite(own)]
    for trust, value in zip(priors.trust(ids).tolist(), own, strict=True):
        if np.isfinite(value):
            assert trust == pytest.approx(((known < value).mean() + (known <= value).mean()) / 2, abs=1e-6)
        else:
            assert np.isnan(trust)
    misplaced = MisplacedPriors(priors.store, samples, 1.0, 0)
    taken = [misplaced._taken_from.get(one, one) for one in ids]
    assert taken != ids
    assert np.array_equal(misplaced.trust(ids).numpy(), priors.trust(taken).numpy(), equal_nan=True)


def test_prior_reader_is_picklable(mini_root: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    priors = pickle.loads(pickle.dumps(StorePriors(_store(mini_root))))
    proposal, _ = priors.read([dataset.samples("train")[0].sample_id])
    assert proposal.dtype == torch.uint8 and proposal.shape == (1, 16, 16)


def _store(mini_root: Path):
    return PriorStore(mini_root / "stores" / "refshapes.test.zarr")


def test_misplaced_priors_are_another_objects_of_the_same_image(mini_root: Path) -> None:
    """All rows at a share of 1, about half at one half, none at 0; the same rows again for the same seed."""
    samples = load_refer(mini_root / "data", "refshapes", "unc").samples("train")
    store = StorePriors(_store(mini_root)).store
    whole = MisplacedPriors(store, samples, 1.0, 0)
    by_id = {sample.sample_id: sample for sample in samples}
    objects: dict[int, set[int]] = {}
    for sample in samples:
        objects.setdefault(sample.image_id, set()).add(sample.ann_id)
    assert whole.num_misplaced == sum(len(objects[sample.image_id]) > 1 for sample in samples) > 0
    for own, other in whole._taken_from.items():
        assert by_id[own].image_id == by_id[other].image_id and by_id[own].ann_id != by_id[other].ann_id
    own, other = next(iter(whole._taken_from.items()))
    plain = StorePriors(store)
    assert torch.equal(whole.read([own])[0], plain.read([other])[0])
    none = MisplacedPriors(store, samples, 0.0, 0)
    inputs = dataclasses.replace(open_inputs(mini_config(mini_root)), priors=none)
    assert inputs.store == {"path": str(store.path), "fingerprint": store.fingerprint}, "of no rows, and read"
    half = MisplacedPriors(store, samples, 0.5, 0)
    assert 0 < half.num_misplaced < whole.num_misplaced and none.num_misplaced == 0
    assert half._taken_from == MisplacedPriors(store, samples, 0.5, 0)._taken_from
    assert half._taken_from != MisplacedPriors(store, samples, 0.5, 1)._taken_from
