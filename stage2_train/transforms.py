"""Views of one sample: resize, weak view (flip) and strong view (appearance only).

Everything is a pure function of its arguments; randomness comes in as a generator keyed by the sample.
Axes: H, W model input; G side of the prior grid; 3 RGB. Images are u8 [H,W,3], masks bool [H,W]; the resize ignores
the aspect ratio, so the prior's normalised frame and the model input are the same frame.
The strong view holds no geometric operation: a pseudo-label made on the weak view stays valid pixel for pixel.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from shared.errors import DataError
from stage2_train.synonyms import MIRRORED_WORDS

MIRROR_WORDS: dict[str, str] = {a: b for pair in MIRRORED_WORDS for a, b in (pair, pair[::-1])}
"""Word -> the word that names the same place in the mirrored image."""

_COLOURS = "blue|green|gr[ae]y|brown|pink|purple|yellow|orange|red|tan|beige|colou?r(?:ed)?"

_MIRROR_PATTERN = re.compile(
    rf"\b(?!lt\b\.?[ -]*(?:{_COLOURS})\b)"  # "lt blue" is light
    r"(" + "|".join(sorted(MIRROR_WORDS, key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class WeakConfig:
    """The weak view."""

    flip_probability: float = 0.5
    """Probability of a horizontal flip (image, mask, prior and left/right words together), [0,1]."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 <= self.flip_probability <= 1.0:
            raise DataError(f"weak.flip_probability is {self.flip_probability}, not in [0,1]")


@dataclass(frozen=True, kw_only=True)
class StrongConfig:
    """The strong image view, applied on top of the weak one."""

    operations: int = 2
    """Operations per image, drawn without repetition (the paper is silent: ours)."""
    enhance_low: float = 0.1
    """Lower end of the enhancement factor of contrast, sharpness, colour and brightness; 1 = unchanged."""
    enhance_high: float = 0.95
    """Upper end of the enhancement factor."""
    blur_sigma_low: float = 0.1
    """Lower end of the Gaussian blur's sigma, pixels at `blur_reference_px`."""
    blur_sigma_high: float = 2.0
    """Upper end of the Gaussian blur's sigma, pixels at `blur_reference_px`."""
    blur_reference_px: int = 480
    """Image height the sigmas are meant for; they scale with the height (ours; 0 = never scaled)."""
    posterize_low: int = 4
    """Fewest bits kept by posterize."""
    posterize_high: int = 8
    """Most bits kept by posterize (8 = unchanged)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.operations <= len(STRONG_OPERATIONS):
            raise DataError(f"strong.operations is {self.operations}, not in 0..{len(STRONG_OPERATIONS)}")
        if not 0 < self.enhance_low <= self.enhance_high:
            raise DataError(
                f"strong.enhance range {self.enhance_low}..{self.enhance_high} is empty or not positive"
            )
        if not 0 <= self.blur_sigma_low <= self.blur_sigma_high or self.blur_reference_px < 0:
            raise DataError(
                f"strong.blur_sigma range {self.blur_sigma_low}..{self.blur_sigma_high} is not usable"
            )
        if not 1 <= self.posterize_low <= self.posterize_high <= 8:
            raise DataError(
                f"strong.posterize range {self.posterize_low}..{self.posterize_high} is not within 1..8"
            )


def mirror_words(text: str) -> str:
    """Swap left and right words (whole words, case kept); `lt` before a colour is "light" and stays."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        other = MIRROR_WORDS[word.lower()]
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return _MIRROR_PATTERN.sub(swap, text)


def resize_image(image: Image.Image, height: int, width: int) -> np.ndarray:
    """An RGB image as u8 [height,width,3], bilinear with anti-aliasing, aspect ratio ignored."""
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)


def upsample(margin_1HW: torch.Tensor, size_hw: tuple[int, ...]) -> torch.Tensor:
    """f32 [h,w], bilinear (pixel centres aligned by area, not by corners)."""
    if tuple(margin_1HW.shape[-2:]) == tuple(size_hw):
        return margin_1HW[0]
    return F.interpolate(margin_1HW[None], size=tuple(size_hw), mode="bilinear", align_corners=False)[0, 0]


def flip_columns(array: np.ndarray) -> np.ndarray:
    """Mirror the columns of [H,W] or [H,W,3]; a contiguous copy."""
    return np.ascontiguousarray(array[:, ::-1])


def draw_flip(rng: np.random.Generator, config: WeakConfig) -> bool:
    """Whether this sample is flipped."""
    return bool(rng.random() < config.flip_probability)


def resize_prior(proposal_BGG: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Stored soft masks at the model's resolution.

    Args:
        proposal_BGG: u8 [B,G,G], probability * 255 on a grid over the whole image, pixel centres (i+.5)/G.
        height: H of the model input.
        width: W of the model input.

    Returns:
        f32 [B,1,H,W] in [0,1], as `resize_field`.
    """
    return resize_field(proposal_BGG[:, None].float() / 255.0, (height, width))


def resize_field(field_B1HW: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """A soft mask at another resolution: area average when shrinking, bilinear when growing."""
    height, width = field_B1HW.shape[-2:]
    if (height, width) == tuple(size_hw):
        return field_B1HW
    if height >= size_hw[0] and width >= size_hw[1]:
        return F.interpolate(field_B1HW, size=size_hw, mode="area")
    return F.interpolate(field_B1HW, size=size_hw, mode="bilinear", align_corners=False)


def strong_image(image_HW3: np.ndarray, rng: np.random.Generator, config: StrongConfig) -> np.ndarray:
    """The strong view of a weakly augmented image.

    Args:
        image_HW3: u8 [H,W,3].
        rng: Source of the operations and their strengths.
        config: Number of operations and ranges.

    Returns:
        u8 [H,W,3]; no pixel has moved.
    """
    image = Image.fromarray(image_HW3)
    names = list(STRONG_OPERATIONS)
    for choice in rng.choice(len(names), size=config.operations, replace=False):
        image = STRONG_OPERATIONS[names[int(choice)]](image, rng, config)
    return np.asarray(image, dtype=np.uint8)


def _blur(image: Image.Image, rng: np.random.Generator, config: StrongConfig) -> Image.Image:
    sigma = rng.uniform(config.blur_sigma_low, config.blur_sigma_high)
    if config.blur_reference_px:
        sigma *= image.height / config.blur_reference_px
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _posterize(image: Image.Image, rng: np.random.Generator, config: StrongConfig) -> Image.Image:
    return ImageOps.posterize(image, int(rng.integers(config.posterize_low, config.posterize_high + 1)))


def _enhanced(kind: type) -> Callable[[Image.Image, np.random.Generator, StrongConfig], Image.Image]:
    def operation(image: Image.Image, rng: np.random.Generator, config: StrongConfig) -> Image.Image:
        return kind(image).enhance(float(rng.uniform(config.enhance_low, config.enhance_high)))

    return operation


STRONG_OPERATIONS: dict[str, Callable[[Image.Image, np.random.Generator, StrongConfig], Image.Image]] = {
    "identity": lambda image, rng, config: image,
    "autocontrast": lambda image, rng, config: ImageOps.autocontrast(image),
    "equalize": lambda image, rng, config: ImageOps.equalize(image),
    "blur": _blur,
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "colour": _enhanced(ImageEnhance.Color),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "posterize": _posterize,
}
"""Appearance operations by name; none moves a pixel except blur, which spreads it evenly."""
