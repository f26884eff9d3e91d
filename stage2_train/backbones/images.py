"""Pixels as every vision tower expects them."""

from torch import Tensor

from stage2_train.constants import constant

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Channel statistics of images in [0, 1] that the towers are trained with."""


def normalise_image(image_BHW3: Tensor) -> Tensor:
    """uint8 RGB [B, H, W, 3] to normalised float32 [B, 3, H, W]."""
    image_B3HW = image_BHW3.permute(0, 3, 1, 2).float() / 255.0
    mean_311, std_311 = (constant(values, image_B3HW)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return (image_B3HW - mean_311) / std_311
