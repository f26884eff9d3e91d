"""What a run is scored on, beside which prior, and where the scores are filed."""

import json
import shutil
from pathlib import Path

import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.refer import ReferDataset, load_refer
from stage2_train import evaluate as module
from stage2_train.config import L2lConfig, RuntimeConfig
from stage2_train.evaluate import _prior_for, evaluate_run, evaluate_splits
from stage2_train.run_files import load_model
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, plain_config, write_data, write_priors


@pytest.fixture(scope="module")
def dataset(mini_root: Path) -> ReferDataset:
    return load_refer(mini_root / "data", "refshapes", "unc")


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


def test_splits_are_scored_by_one_network_and_refused_before_the_first(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(module, "load_model", lambda run: loaded.append(run) or load_model(run))
    both = evaluate_splits(finished, ("testB", "testA"), write=False)
    assert len(loaded) == 1 and list(both) == ["testB", "testA"]
    monkeypatch.setattr(module, "score_samples", None)
    with pytest.raises(DataError, match="no split 'nope'"):
        evaluate_splits(finished, ("testA", "nope"), write=False)
    monkeypatch.undo()
    assert both == {split: evaluate_run(finished, split, write=False) for split in both}


def test_evaluation_is_repeatable_and_does_not_depend_on_the_batch(finished: Path) -> None:
    one = evaluate_run(finished, "testA", batch=3, write=False)
    two = evaluate_run(finished, "testA", batch=64, write=False)
    assert one["model"]["miou"] == pytest.approx(two["model"]["miou"], abs=2e-3)
    assert not (finished / "eval" / "testA.json").exists()


def test_readers_change_no_score(finished: Path) -> None:
    alone = evaluate_run(finished, "testA", batch=3, write=False)
    assert evaluate_run(finished, "testA", batch=3, workers=2, write=False) == alone


def test_self_guided_is_reported_beside(finished: Path) -> None:
    plain = evaluate_run(finished, "val", write=False)
    both = evaluate_run(finished, "val", write=False, self_guided=True)
    assert "self_guided" not in plain and both["original"] == plain["original"]
    assert both["self_guided"]["original"]["num"] == plain["num"]


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


def test_on_other_data_the_store_made_alike_for_them_gives_the_priors_score(
    tmp_path: Path, mini_root: Path, dataset: ReferDataset
) -> None:
    """By model and question, not by the data themselves; one by another model would be another prior."""
    stores, other = tmp_path / "stores", write_data(tmp_path / "other", 17)
    config = apply_overrides(
        mini_config(mini_root, cache_root=str(stores)), [f"data.root={tmp_path / 'other'}"]
    )
    own = write_priors(stores / "own.zarr", dataset, fingerprint="own", model="a")
    (tmp_path / "config.json").write_text(json.dumps({"store": {"path": str(own)}}))
    for model in ("b", "c"):
        write_priors(stores / f"{model}.zarr", other, fingerprint=model, splits=("val",), model=model)
    reader, note = _prior_for(tmp_path, config, other, other.samples("val"), "")
    assert reader is None
    assert note.startswith("no prior score: ") and note.endswith("; --store PATH names another store")
    alike = write_priors(stores / "alike.zarr", other, fingerprint="alike", splits=("val",), model="a")
    reader, note = _prior_for(tmp_path, config, other, other.samples("val"), "")
    assert reader is not None and note == f"from {alike}"


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


def test_a_store_that_is_named_must_be_whole_and_of_these_data(
    finished: Path, tmp_path: Path, dataset: ReferDataset
) -> None:
    """Its ids may be the same, and its masks are of other objects."""
    both, other = ("train", "val"), {"fingerprint": "others"}
    path = write_priors(tmp_path / "foreign.zarr", dataset, splits=both, data=other)
    with pytest.raises(DataError, match="foreign.zarr: made for other annotations"):
        evaluate_run(finished, "val", store=str(path), write=False)
    path = write_priors(tmp_path / "begun.zarr", dataset, splits=both)
    (path / "done" / "0.json").unlink()
    with pytest.raises(DataError, match="begun.zarr: 1 of 1 shards are not finished"):
        evaluate_run(finished, "val", store=str(path), write=False)


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


def test_a_summary_says_that_its_sentences_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written last: where only it was, the split would count as scored."""

    def full(file: Path, data: bytes) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "publish_file", full)
    with pytest.raises(OSError, match="No space"):
        module._write(tmp_path / "eval", "val", {"masks": "m"}, [{"sample_id": "a"}])
    assert not module.is_scored(tmp_path, "val", "m")


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
    with pytest.raises(DataError, match="split '../val': scores are filed under this name"):
        evaluate_run(run, "../val", root=str(grown), data_name="later")
    assert not (run / "eval").exists()
    result = evaluate_run(run, "val", root=str(grown), data_name="later")
    assert [file.name for file in sorted((run / "eval").iterdir())] == ["later-val.json", "later-val.jsonl"]
    assert result["split"] == "later-val" and result["data"]["annotations"] != dataset.fingerprint()
    said = {name: result["data"][name] for name in ("name", "split", "root", "dataset")}
    assert said == {"name": "later", "split": "val", "root": str(grown), "dataset": "refshapes"}
    assert result["shared_with_train"] == 0, "counted in what it was trained on, which lies where it lay"
