import dataclasses
import shutil
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.refer import load_refer
from shared.store.find import find_stores
from shared.store.reader import PriorStore
from stage2_train.store_choice import choose_store, made_alike, open_priors
from tests.stage2_train.miniature import mini_config, write_priors


def test_no_store_says_what_to_run(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    with pytest.raises(DataError, match="no complete prior store.*`l2l priors run RECIPE`"):
        choose_store(mini_config(mini_root, cache_root=str(tmp_path)), dataset)
    (tmp_path / "theirs.zarr" / "zarr.json").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"no complete prior store.*passed over: .*theirs.zarr/zarr.json: cannot be read"
    ):
        choose_store(mini_config(mini_root, cache_root=str(tmp_path)), dataset)


def test_a_store_made_for_the_file_of_before_is_named(mini_root: Path, monkeypatch) -> None:
    """A phrase was changed: the old store is there, and most of it is taken over by the next."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    monkeypatch.setattr(dataset, "fingerprint", lambda: "another")
    config = mini_config(mini_root)
    with pytest.raises(
        DataError, match=r"as it is now \(.*\.zarr was made for other annotations\); run `l2l priors"
    ):
        choose_store(config, dataset)
    (store,) = find_stores(config.cache_root, dataset="refshapes", split_by="unc")
    with pytest.raises(DataError, match="made for other annotations than .* holds now; run `l2l priors run"):
        open_priors(store, config, dataset, [])


def test_the_store_of_the_data_as_they_are_now_is_named_to_a_run_of_the_old_one(
    mini_root: Path, tmp_path: Path
) -> None:
    """A run keeps to the store that it read; its settings are wanted for data that have grown since."""
    config = mini_config(mini_root)
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    now = choose_store(config, dataset)
    old = write_priors(
        tmp_path / "old.zarr", dataset, fingerprint="a" * 16, data={"fingerprint": "of before"}
    )
    told = (
        f"old.zarr: made for other annotations than .* holds now; {now} was made for those, .* store={now}$"
    )
    with pytest.raises(DataError, match=told):
        open_priors(old, config, dataset, [])


def test_several_stores_are_listed(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    for name in ("one", "two"):
        write_priors(tmp_path / f"{name}.zarr", dataset, fingerprint=name * 4)
    config = mini_config(mini_root, cache_root=str(tmp_path))
    with pytest.raises(
        DataError, match=r"2 prior stores.*one\.zarr.*two\.zarr; name one: .*eval` and .*: --store PATH"
    ):
        choose_store(config, dataset)
    assert choose_store(dataclasses.replace(config, store="x.zarr"), dataset) == Path("x.zarr")


def test_of_stores_made_alike_the_widest_counts(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config = mini_config(mini_root, cache_root=str(tmp_path))
    for name, splits in (("narrow", ("train",)), ("wide", ("train", "val"))):
        write_priors(tmp_path / f"{name}.zarr", dataset, fingerprint=name, splits=splits, model="a")
    assert choose_store(config, dataset) == tmp_path / "wide.zarr"
    write_priors(tmp_path / "aside.zarr", dataset, fingerprint="aside", splits=("train", "testA"), model="a")
    with pytest.raises(DataError, match=r"2 prior stores.*aside\.zarr.*wide\.zarr"):
        choose_store(config, dataset)
    shutil.rmtree(tmp_path / "aside.zarr")
    write_priors(tmp_path / "other.zarr", dataset, fingerprint="other", model="b")
    with pytest.raises(DataError, match=r"2 prior stores.*other\.zarr.*wide\.zarr"):
        choose_store(config, dataset)


def test_an_unfinished_store_is_passed_over_and_refused(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config, samples = mini_config(mini_root, cache_root=str(tmp_path)), dataset.samples("train")
    begun = write_priors(tmp_path / "begun.zarr", dataset, fingerprint="begun")
    (begun / "done" / "0.json").unlink()
    with pytest.raises(
        DataError, match=r"no complete prior store .*\(unfinished: .*begun\.zarr; run the same"
    ):
        choose_store(config, dataset)
    with pytest.raises(DataError, match=r"begun\.zarr: 1 of 1 shards are not finished"):
        open_priors(begun, config, dataset, samples)
    whole = write_priors(tmp_path / "whole.zarr", dataset, fingerprint="whole")
    assert choose_store(config, dataset) == whole


@pytest.mark.parametrize(("bytes_of_wide", "alike"), [("first", True), ("second", False), ("", True)])
def test_stores_of_other_bytes_of_their_images_are_not_alike(
    mini_root: Path, tmp_path: Path, bytes_of_wide: str, alike: bool
) -> None:
    """Where one does not know them, they are taken for the same."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config = mini_config(mini_root, cache_root=str(tmp_path))
    write_priors(tmp_path / "narrow.zarr", dataset, fingerprint="narrow", model="a", images="first")
    both = ("val", "train")
    write_priors(
        tmp_path / "wide.zarr", dataset, fingerprint="wide", splits=both, model="a", images=bytes_of_wide
    )
    if alike:
        assert choose_store(config, dataset) == tmp_path / "wide.zarr"
    else:
        with pytest.raises(DataError, match=r"2 prior stores"):
            choose_store(config, dataset)


def test_a_store_of_the_first_pairs_is_made_alike(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    few, whole, others, unknown = (
        PriorStore(
            write_priors(tmp_path / f"{name}.zarr", dataset, fingerprint=name, model=model, limit=limit)
        )
        for name, model, limit in (
            ("few", "a", 5),
            ("whole", "a", None),
            ("others", "b", 5),
            ("unknown", "", 5),
        )
    )
    assert made_alike(few, whole) and made_alike(whole, few)
    assert not made_alike(few, others) and not made_alike(unknown, unknown)


def test_a_store_of_the_first_pairs_is_passed_over_and_refused_in_words(
    mini_root: Path, tmp_path: Path
) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config, samples = mini_config(mini_root, cache_root=str(tmp_path)), dataset.samples("train")
    few = write_priors(tmp_path / "few.zarr", dataset, fingerprint="few", limit=5)
    with pytest.raises(
        DataError, match=r"no complete prior store .*\(of the first pairs alone: .*few\.zarr; a run "
    ):
        choose_store(config, dataset)
    assert choose_store(dataclasses.replace(config, store=str(few)), dataset) == few
    with pytest.raises(
        DataError,
        match=r"no row for sample '.*'; it holds the first 5 pairs alone of refshapes \(unc\), splits train$",
    ):
        open_priors(few, config, dataset, samples)
    assert open_priors(few, config, dataset, samples[:5]).store.limit == 5
    all_of_them = write_priors(tmp_path / "all.zarr", dataset, fingerprint="all")
    assert choose_store(config, dataset) == all_of_them


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"fingerprint": "0" * 32}, "other annotations"),
        ({"dataset": "refcoco"}, "dataset 'refcoco'"),
        ({"split_by": "google"}, "split_by 'google'"),
    ],
)
def test_a_store_of_other_data_is_refused(mini_root: Path, tmp_path: Path, data: dict, message: str) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    path = write_priors(tmp_path / "other.zarr", dataset, data=data)
    with pytest.raises(DataError, match=message):
        open_priors(path, mini_config(mini_root), dataset, dataset.samples("train"))


def test_a_store_of_other_images_is_refused(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    path = write_priors(tmp_path / "other.zarr", dataset)
    samples = dataset.samples("train")
    assert open_priors(path, mini_config(mini_root), dataset, samples).store.path == path
    samples[3] = dataclasses.replace(samples[3], height=64)
    with pytest.raises(DataError, match=r"row 3 .*\[128, 128\].*\[64, 128\]"):
        open_priors(path, mini_config(mini_root), dataset, samples)


def test_a_store_without_the_samples_is_refused(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    path = write_priors(tmp_path / "val.zarr", dataset, splits=("val",))
    with pytest.raises(DataError, match="no row for sample"):
        open_priors(path, mini_config(mini_root), dataset, dataset.samples("train"))
