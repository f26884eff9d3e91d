"""Opens the prior store a run reads, and refuses one made for other data.

Legend: B samples, I images, G side of the stored grid.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.errors import DataError
from shared.image_hashes import content_hashes, identify_images, memory_of
from shared.refer import ReferringDataset
from shared.seeding import rng
from shared.store.find import find_stores, unusable_stores
from shared.store.reader import PriorStore
from shared.store.schema import IMAGE_HASH
from shared.types import STATUS_CODES, Sample
from stage2_train.config import TrainConfig

_NAME_IT = "name one: --set store=PATH (of `l2l eval`: --store PATH)"
_RUN_AGAIN = "run `l2l priors run RECIPE` for it again, which asks for what is new alone"

HAS_PRIOR = np.array([code for status, code in STATUS_CODES.items() if status.has_prior], dtype=np.uint8)
"""Codes of `status` under which a row carries a proposal."""


class StorePriors:
    """Soft masks by sample id; picklable by path."""

    def __init__(self, store: PriorStore) -> None:
        """Wrap a complete store."""
        self.store = store
        self._sorted_confidence: np.ndarray | None = None

    def read(self, sample_ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Proposals u8 [B,G,G] and bool [B]: whether the row has a prior (a usable box, or a mask from outside).

        Raises:
            DataError: A sample the store does not hold, or damaged data.
        """
        rows = self.store.rows_of(sample_ids)
        proposal_BGG = torch.from_numpy(self.store.batch("proposal", rows))
        return proposal_BGG, torch.from_numpy(np.isin(self.store.batch("status", rows), HAS_PRIOR))

    def trust(self, sample_ids: Sequence[str]) -> torch.Tensor:
        """f32 [B] in [0, 1]: share of training rows less confident than this one; NaN where it has no confidence.

        Among rows of the train split, so that a run is the same whatever else its store holds; a store without any
        ranks all its rows.
        """
        if self._sorted_confidence is None:
            known = self.store.column("confidence")
            splits = self.store.attrs.get("splits", ())
            is_training = self.store.column("split") == (splits.index("train") if "train" in splits else -1)
            known = known[is_training] if is_training.any() else known
            self._sorted_confidence = np.sort(known[np.isfinite(known)])
        ordered = self._sorted_confidence
        own_B = self.store.batch("confidence", self.store.rows_of(sample_ids))
        rank_B = (np.searchsorted(ordered, own_B) + np.searchsorted(ordered, own_B, side="right")) / 2
        trust_B = np.where(np.isfinite(own_B), rank_B / max(len(ordered), 1), np.nan)
        return torch.from_numpy(trust_B.astype(np.float32))

    def row_read(self, sample_id: str) -> str:
        """The sample whose row is read for this one."""
        return sample_id


class MisplacedPriors(StorePriors):
    """`StorePriors` in which a share of the rows carries the answer given for another object of the same image.

    For robustness studies. Which rows, and whose answer, is a function of (seed, sample id); a row whose image holds no
    other object keeps its own. Mask and status move together, as if the model had answered so.
    """

    def __init__(self, store: PriorStore, samples: Sequence[Sample], share: float, seed: int) -> None:
        """Decide for every one of `samples`."""
        super().__init__(store)
        by_image: dict[int, list[Sample]] = {}
        for sample in samples:
            by_image.setdefault(sample.image_id, []).append(sample)
        self._taken_from: dict[str, str] = {}
        for sample in samples:
            draw = rng(seed, sample.sample_id, "misplaced prior")
            others = [one for one in by_image[sample.image_id] if one.ann_id != sample.ann_id]
            if draw.random() < share and others:
                self._taken_from[sample.sample_id] = others[int(draw.integers(len(others)))].sample_id

    def __len__(self) -> int:
        """Rows that carry another object's answer."""
        return len(self._taken_from)

    def row_read(self, sample_id: str) -> str:
        """See `StorePriors.row_read`."""
        return self._taken_from.get(sample_id, sample_id)

    def read(self, sample_ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `StorePriors.read`."""
        return super().read(list(map(self.row_read, sample_ids)))

    def trust(self, sample_ids: Sequence[str]) -> torch.Tensor:
        """See `StorePriors.trust`."""
        return super().trust(list(map(self.row_read, sample_ids)))


def choose_store(config: TrainConfig, dataset: ReferringDataset, like: PriorStore | None = None) -> Path:
    """The store a run reads: the one that is named, else the one there is.

    Of complete stores that were made in the same way (`made_alike`), the one counts that covers the splits of all. One
    of the first pairs alone (`priors run --limit`) counts only where it is named.

    Args:
        config: The run.
        dataset: Its data.
        like: Stores that were made in another way than this one do not count.

    Raises:
        DataError: No complete store for this data, or several and none named.
    """
    if config.store:
        return Path(config.store)
    data, stores = config.data, _stores_of(config, dataset)
    whole = [store for store in stores if store.limit is None]
    fitting = [store for store in whole if store.is_complete and (like is None or made_alike(like, store))]
    complete = _widest(fitting)
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


def require_same_images(
    store: PriorStore,
    config: TrainConfig,
    dataset: ReferringDataset,
    samples: Sequence[Sample],
    *,
    quiet: bool = False,
) -> None:
    """Refuse a store that was made for other bytes of the images than they have now.

    Only images that have changed since they were last read, by size or time, are read again. A store that does not know
    its images (`image_hash=size`, imported masks) is taken as it is, and so is an image that could not be read, then
    or now.

    Args:
        store: The store, which holds all samples.
        config: The run.
        dataset: Its data.
        samples: Samples whose priors will be read.
        quiet: No progress bar.

    Raises:
        DataError: An image was replaced; the first is named.
    """
    if not config.runtime.compare_images or IMAGE_HASH not in store.fields:
        return
    sample_of = {sample.file_name: sample for sample in samples}
    images = identify_images(
        ((name, dataset.image_identity(name)) for name in sample_of),
        "content",
        memory_of(config.cache_root, config.data.dataset),
        must_save=False,
        quiet=quiet,
    )
    now = content_hashes(images)
    names = [name for name in sample_of if name in now]
    then_I16 = store.batch(IMAGE_HASH, store.rows_of([sample_of[name].sample_id for name in names]))
    replaced = [
        name for name, then in zip(names, then_I16, strict=True) if then.any() and then.tobytes() != now[name]
    ]
    if replaced:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        raise DataError(
            f"{store.path}: made for other bytes of image {replaced[0]}{more} than {config.data.root} holds now; "
            "run `l2l priors run RECIPE` again, which asks about replaced images alone, and train into another folder "
            "with --set store=NEW, give the old images back, or, if no pixel has changed, set runtime.compare_images=false"
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
