"""Chooses and opens the prior store a run reads, and refuses one made for other data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.refer import ReferringDataset
from shared.store.find import find_stores, unusable_stores
from shared.store.reader import PriorStore
from shared.store.schema import IMAGE_HASH
from shared.types import Sample
from stage2_train.config import TrainConfig
from stage2_train.prior_source import StorePriors
from stage2_train.same_images import replaced_images

_NAME_IT = "name one: --set store=PATH (of `l2l eval` and `export-labels`: --store PATH)"
_RUN_AGAIN = "run `l2l priors run RECIPE` for it again, which asks for what is new alone"


def choose_store(
    config: TrainConfig, dataset: ReferringDataset, like: PriorStore | None = None, *, quiet: bool = True
) -> Path:
    """The store a run reads: the one that is named, else the one there is.

    Of complete stores that were made in the same way (`made_alike`), the one counts that covers the splits of all; of
    several that are left, those made for the images as they are now. One of the first pairs alone (`priors run
    --limit`) counts only where it is named.

    Args:
        config: The run.
        dataset: Its data.
        like: Stores that were made in another way than this one do not count.
        quiet: No progress bar over images that have to be compared with those of several stores.

    Raises:
        DataError: No complete store for this data, or several and none named.
    """
    if config.store:
        return Path(config.store)
    data, stores = config.data, _stores_of(config, dataset)
    whole = [store for store in stores if store.limit is None]
    fitting = [store for store in whole if store.is_complete and (like is None or made_alike(like, store))]
    complete = _widest(fitting)
    if len(complete) > 1:
        complete = _of_these_images(complete, config, dataset, quiet) or complete
    if len(complete) == 1:
        return complete[0]
    if complete:
        names = ", ".join(map(str, complete))
        raise DataError(
            f"{len(complete)} prior stores fit {data.dataset}({data.split_by}): {names}; {_NAME_IT}"
        )
    unfinished = (
        f" (unfinished: {', '.join(str(store.path) for store in whole)}; run the same `l2l priors run` again)"
        if whole
        else ""
    )
    limited = ", ".join(str(store.path) for store in stores if store.limit is not None)
    if limited:
        unfinished += f" (of the first pairs alone: {limited}; a run without --limit takes them over)"
    if not stores and (
        earlier := find_stores(config.cache_root, dataset=data.dataset, split_by=data.split_by)
    ):
        raise DataError(
            f"{config.cache_root}: no prior store for {data.dataset}({data.split_by}) as it is now ({earlier[-1].name} "
            f"was made for other annotations); {_RUN_AGAIN}"
        )
    passed_over = (
        f" (passed over: {'; '.join(lines)})" if (lines := unusable_stores(config.cache_root)) else ""
    )
    raise DataError(
        f"{config.cache_root}: no complete prior store for {data.dataset}({data.split_by}){unfinished}{passed_over}; "
        f"run `l2l priors run RECIPE` for this data first, or {_NAME_IT}"
    )


def made_alike(one: PriorStore, other: PriorStore) -> bool:
    """Whether two stores differ in data, splits and limit alone: the same model, asked in the same way.

    Where both are of one data set and know the bytes of their images, those of common rows must be the same.
    """
    ways = []
    same_data = _made_for(one) == _made_for(other)
    for store in (one, other):
        fields = dict(store.attrs.get("fingerprint_fields", {}))
        for name in ("splits", "limit"):
            fields.pop(name, None)
        data = fields.pop("data", None)
        if same_data and isinstance(data, dict):
            fields["data"] = {key: value for key, value in data.items() if key != "images"}
        ways.append(fields)
    if not ways[0] or ways[0] != ways[1]:
        return False
    if not same_data or IMAGE_HASH not in one.fields or IMAGE_HASH not in other.fields:
        return True
    common = sorted(set(one.sample_ids) & set(other.sample_ids))
    own, theirs = (store.batch(IMAGE_HASH, store.rows_of(common)) for store in (one, other))
    return np.array_equal(own, theirs)


def _made_for(store: PriorStore) -> dict[str, Any]:
    """What tells the data of a store from others."""
    data = store.attrs.get("data", {})
    return {name: data.get(name) for name in ("dataset", "split_by", "fingerprint")}


def _widest(stores: Sequence[PriorStore]) -> list[Path]:
    """Stores but for those of which another one, made alike, covers all splits and more; of copies the first alone."""
    stores = list({store.fingerprint: store for store in reversed(stores)}.values())[::-1]
    splits = [set(store.attrs.get("splits", ())) for store in stores]
    return [
        store.path
        for store, own in zip(stores, splits, strict=True)
        if not any(
            own < theirs and made_alike(store, other) for other, theirs in zip(stores, splits, strict=True)
        )
    ]


def _of_these_images(
    paths: Sequence[Path], config: TrainConfig, dataset: ReferringDataset, quiet: bool
) -> list[Path]:
    """Stores none of whose images was replaced since."""
    found = []
    for path in paths:
        store = PriorStore(path)
        samples = [sample for split in store.attrs.get("splits", ()) for sample in dataset.samples(split)]
        if not replaced_images(store, config, dataset, samples, quiet=quiet):
            found.append(path)
    return found


def open_priors(
    path: Path, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample]
) -> StorePriors:
    """Open a store and check that it was made for these samples.

    Args:
        path: The store.
        config: The run.
        dataset: Its data.
        samples: Samples whose priors will be read.

    Raises:
        DataError: An incomplete store, one made for other annotations, or for images of other sizes.
    """
    store = PriorStore(path)
    store.require_complete()
    _require_made_for(store, config, dataset, samples)
    return StorePriors(store)


def require_fitting(
    path: Path, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample]
) -> None:
    """Look at a store that may not be there yet, or not be complete.

    Raises:
        DataError: One is there that was made for other annotations, or for images of other sizes.
    """
    if path.exists():
        _require_made_for(PriorStore(path), config, dataset, samples)


def _require_made_for(
    store: PriorStore, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample]
) -> None:
    path, made_for = store.path, _made_for(store)
    wanted = {
        "dataset": config.data.dataset,
        "split_by": config.data.split_by,
        "fingerprint": dataset.fingerprint(),
    }
    for name, value in wanted.items():
        if made_for[name] == value:
            continue
        if name == "fingerprint":
            raise DataError(
                f"{path}: made for other annotations than {config.data.root} holds now; "
                f"{_made_since(config, dataset) or _RUN_AGAIN}"
            )
        raise DataError(f"{path}: made for data with {name} {made_for[name]!r}, this run has {value!r}")
    rows = store.rows_of([sample.sample_id for sample in samples])
    stored_hw = store.batch("image_hw", rows)
    own_hw = np.array([(sample.height, sample.width) for sample in samples])
    if len(rows) and (wrong := np.flatnonzero((stored_hw != own_hw).any(1))).size:
        first = int(wrong[0])
        raise DataError(
            f"{path}: row {rows[first]} ({samples[first].sample_id}) was made for an image of "
            f"{stored_hw[first].tolist()} pixels, {samples[first].file_name} has {own_hw[first].tolist()}"
        )


def _made_since(config: TrainConfig, dataset: ReferringDataset) -> str:
    """Which store of the data as they are now there is, for a run that names an older one; "" if there is none."""
    complete = [
        store.path for store in _stores_of(config, dataset) if store.is_complete and store.limit is None
    ]
    if not complete:
        return ""
    return f"{complete[-1]} was made for those, and a new run reads it by --set store={complete[-1]}"


def _stores_of(config: TrainConfig, dataset: ReferringDataset) -> list[PriorStore]:
    """The stores that were begun for the data as they are now."""
    data, annotations = config.data, dataset.fingerprint()
    found = find_stores(
        config.cache_root, dataset=data.dataset, split_by=data.split_by, data_fingerprint=annotations
    )
    return [PriorStore(path) for path in found]
