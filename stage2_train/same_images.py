"""Refuses a prior store that was made for other images than those that lie there now.

Legend: I images.
"""

from collections.abc import Sequence

from shared.errors import DataError
from shared.image_hashes import content_hashes, identify_images, memory_of
from shared.refer import ReferringDataset
from shared.store.reader import PriorStore
from shared.store.schema import IMAGE_HASH
from shared.types import Sample
from stage2_train.config import TrainConfig


def require_same_images(
    store: PriorStore,
    config: TrainConfig,
    dataset: ReferringDataset,
    samples: Sequence[Sample],
    *,
    quiet: bool = False,
) -> None:
    """Refuse a store that was made for other bytes of the images than they have now; arguments as `replaced_images`.

    Raises:
        DataError: An image was replaced; the first is named.
    """
    replaced = replaced_images(store, config, dataset, samples, quiet=quiet)
    if replaced:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        raise DataError(
            f"{store.path}: made for other bytes of image {replaced[0]}{more} than {config.data.root} holds now; "
            "run `l2l priors run RECIPE` again, which asks about replaced images alone, and train into another folder "
            "with --set store=NEW, give the old images back, or, if no pixel has changed, "
            "--set runtime.compare_images=false"
        )


def replaced_images(
    store: PriorStore,
    config: TrainConfig,
    dataset: ReferringDataset,
    samples: Sequence[Sample],
    *,
    quiet: bool = False,
) -> list[str]:
    """File names of images that have other bytes now than when the store was made.

    Only images that have changed since they were last read, by size or time, are read again. A store that does not know
    its images (`image_hash=size`, imported masks) is taken as it is, and so is an image that could not be read, then
    or now.

    Args:
        store: The store, which holds all samples.
        config: The run.
        dataset: Its data.
        samples: Samples whose priors will be read.
        quiet: No progress bar.
    """
    if not config.runtime.compare_images or IMAGE_HASH not in store.fields:
        return []
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
    return [
        name for name, then in zip(names, then_I16, strict=True) if then.any() and then.tobytes() != now[name]
    ]
