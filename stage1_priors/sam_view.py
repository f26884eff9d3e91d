"""The size at which a Segment Anything model sees an image, and images at that size. Imports no torch until it must.

A run keeps the images of a chunk until their masks are made. A photo of 12 megapixels takes 48 MB, and SAM sees 1024 x
1024 pixels of it, which take 4. Its own processor makes them here, as whole numbers, and leaves them as they are when
it gets them once more: the masks are the same to the bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.json_files import read_json


class SamView:
    """What one model sees of images."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Read from the model's own files how it wants its images.

        Args:
            kind: `proposer.kind`.
            folder: The model's folder.
        """
        self._kind, self._folder = kind, folder
        path = folder / "preprocessor_config.json"
        if path.is_file():
            told = read_json(path)
        else:
            path = folder / "processor_config.json"
            told = read_json(path).get("image_processor") or {} if path.is_file() else {}
        size = told.get("size")
        self._size: dict[str, int] = size if told.get("do_resize", True) and isinstance(size, dict) else {}
        self._processor: Any = None

    def kept_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of `kept`: those seen, if there are fewer pixels in them."""
        height, width = size_hw
        if {"height", "width"} <= self._size.keys():
            seen_hw = self._size["height"], self._size["width"]
        elif "longest_edge" in self._size:
            scale = self._size["longest_edge"] / max(height, width)
            seen_hw = int(height * scale + 0.5), int(width * scale + 0.5)
        else:  # the model's files leave it to their library
            return size_hw
        return seen_hw if 0 < seen_hw[0] * seen_hw[1] < height * width else size_hw

    def kept(self, image: Image.Image) -> Image.Image:
        """The image, or a smaller one of which the model sees the same."""
        if self.kept_hw((image.height, image.width)) == (image.height, image.width):
            return image
        if self._processor is None:
            from stage1_priors.sam import CLASSES

            _, processor_class = CLASSES[self._kind]
            self._processor = processor_class.from_pretrained(
                self._folder, local_files_only=True
            ).image_processor
        seen = self._processor(
            images=image, do_rescale=False, do_normalize=False, do_pad=False, return_tensors="np"
        )["pixel_values"][0]
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(seen, 0, -1)))
