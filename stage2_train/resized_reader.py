"""Images and masks of a data set at the model's size, read once where memory allows.

Legend: H W model input.
"""

import numpy as np

from shared.masks import resize_mask_nearest
from shared.refer import ReferringDataset
from shared.types import Sample
from stage2_train.transforms import resize_image


class ResizedReader:
    """Images and masks of a data set at the model's size, kept in memory where all of them fit."""

    def __init__(
        self,
        dataset: ReferringDataset,
        height: int,
        width: int,
        *,
        num_images: int = 0,
        num_masks: int = 0,
        cache_mib: int = 0,
    ) -> None:
        """Keep what is decoded if so many images (3 bytes a pixel) and masks (1) take at most `cache_mib` MiB."""
        self.dataset, self.height, self.width = dataset, height, width
        self.keeps = 0 < (3 * num_images + num_masks) * height * width <= cache_mib * 2**20
        self._images: dict[str, np.ndarray] = {}
        self._masks: dict[int, np.ndarray] = {}

    def image(self, sample: Sample) -> np.ndarray:
        """u8 [H,W,3]."""
        found = self._images.get(sample.file_name)
        if found is None:
            size_hw = (self.height, self.width)
            found = resize_image(self.dataset.image(sample, size_hw), *size_hw)
            if self.keeps:
                self._images[sample.file_name] = found
        return found

    def mask(self, sample: Sample) -> np.ndarray:
        """Bool [H,W], nearest; the data set refuses where it may not give it out."""
        found = self._masks.get(sample.ann_id)
        if found is None:
            found = np.asarray(
                resize_mask_nearest(self.dataset.mask(sample), (self.height, self.width)), dtype=bool
            )
            if self.keeps:
                self._masks[sample.ann_id] = found
        return found
