from pathlib import Path

import numpy as np
import pytest

from shared.refer import load_refer
from stage2_train.resized_reader import ResizedReader


@pytest.mark.parametrize(
    ("images", "masks", "kept"), [(9, 5, True), (9, 6, False), (10, 2, True), (10, 3, False)]
)
def test_the_limit_counts_images_and_masks(mini_root: Path, images: int, masks: int, kept: bool) -> None:
    """At 256 x 256 an image takes 3/16 MiB and a mask 1/16; 2 MiB hold 32 such parts."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    reader = ResizedReader(dataset, 256, 256, num_images=images, num_masks=masks, cache_mib=2)
    assert reader.keeps is kept


def test_resized_reader_matches_the_data(mini_root: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    sample = dataset.samples("train")[0]
    reader = ResizedReader(dataset, 128, 128, num_images=1, cache_mib=1)
    assert np.array_equal(reader.mask(sample), dataset.mask(sample))
    assert np.array_equal(reader.image(sample), np.asarray(dataset.image(sample)))
    assert reader.image(sample) is reader.image(sample)
    assert reader.mask(sample) is reader.mask(sample)
