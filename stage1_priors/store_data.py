"""The data set that a store was written for."""

from shared.config import DataConfig
from shared.datasets import load_dataset
from shared.errors import DataError
from shared.refer import ReferDataset
from shared.store.reader import PriorStore


def dataset_of(store: PriorStore, root: str = "") -> ReferDataset:
    """The data set of a store.

    Args:
        store: The store.
        root: Where the data set lies now; "": where it lay when the store was written.

    Raises:
        DataError: It cannot be read, or has other annotations than those the store was written for.
    """
    written = store.attrs["data"]
    config = DataConfig(
        root=root or written["root"], dataset=written["dataset"], split_by=written["split_by"]
    )
    dataset = load_dataset(config)
    if dataset.fingerprint() != written["fingerprint"]:
        raise DataError(
            f"{store.path}: written for other annotations than those in {config.root} ({config.dataset})"
        )
    return dataset
