"""Masks for images and expressions by a finished network, at the images' own size; no prior and no data set is read.

Legend: B pairs, H W model input, h w an image's own size.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shared.errors import DataError
from shared.images import read_image
from shared.masks import encode_rle, mask_box_xyxy_px
from shared.own_device import own_device
from shared.store.publish import disk_errors
from stage2_train.backbones.images import normalise_image
from stage2_train.run_files import model_folder
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.text import Tokenizer, say_unread
from stage2_train.transforms import resize_image, upsample

OVERLAY_RGB = (230, 159, 0)
"""Colour of the object in overlays (Okabe-Ito orange)."""

OVERLAY_OPACITY = 0.45
"""Opacity of that colour; the outline is opaque."""

STEM_BYTES, SLUG_BYTES = 100, 60
"""How much of an image's name and of an expression a file name holds; the disk takes 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says about one pair."""

    mask_hw: np.ndarray
    """`bool [h, w]` at the image's own size."""
    confidence: float | None
    """Mean foreground probability over the mask, not calibrated; None for an empty mask."""
    margin_HW: np.ndarray
    """f32 [H, W] at the model's size: foreground minus background logit."""

    @property
    def prob_hw(self) -> np.ndarray:
        """`float32 [h, w]` in [0, 1] at the image's own size: the foreground probability, not calibrated.

        The mask is where it is at least 0.5. It is made when it is asked for, 4 bytes a pixel.
        """
        return upsample(torch.from_numpy(self.margin_HW)[None], self.mask_hw.shape).sigmoid().numpy()

    def record(self, image: str, expression: str) -> dict[str, Any]:
        """JSON-able description: `rle`, `box_xywh_px` and `area_px` at the image's own size."""
        x0, y0, x1, y1 = mask_box_xyxy_px(self.mask_hw).tolist()
        return {
            "image": image,
            "expression": expression,
            "rle": encode_rle(self.mask_hw),
            "area_px": int(self.mask_hw.sum()),
            "box_xywh_px": [x0, y0, x1 - x0, y1 - y0],
            "confidence": self.confidence,
        }


class Predictor:
    """A network with its tokenizer on one device."""

    def __init__(self, model: ReferringSegmentor, device: str | torch.device | None = None) -> None:
        """Move the network to the device.

        Args:
            model: The network.
            device: As torch names it (`cpu`, `cuda:1`); None is the GPU if there is one, else the CPU.

        Raises:
            DataError: A device that this machine does not have.
        """
        try:
            self.device = torch.device(device or own_device())
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's, by the kind of device
            raise DataError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
        self.tokenise = Tokenizer(model.config)
        self.side = model.config.vision.image_size

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device | None = None) -> "Predictor":
        """From a run folder or a model's folder; raises DataError if it is neither."""
        return cls(ReferringSegmentor.from_pretrained(model_folder(Path(path))), device)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image | np.ndarray], expressions: Sequence[str]
    ) -> list[Prediction]:
        """Segment B pairs in one pass.

        Args:
            images: One per expression, of any size: PIL images in mode RGB (`shared.images.read_image`), or u8 arrays
                [h, w, 3] of red, green and blue.
            expressions: What to look for.

        Raises:
            DataError: What is neither, a blank expression, or numbers that differ.
        """
        pictures = _checked_pairs(images, expressions)
        if not pictures:
            return []
        image_BHW3 = np.stack([resize_image(picture, self.side, self.side) for picture in pictures])
        ids_BT, token_mask_BT = self.tokenise(expressions)
        inputs = [t.to(self.device) for t in (torch.from_numpy(image_BHW3), ids_BT, token_mask_BT)]
        logit_B2HW = self.model(normalise_image(inputs[0]), *inputs[1:]).float()
        margin_B1HW = (logit_B2HW[:, 1:] - logit_B2HW[:, :1]).cpu()
        found = []
        for picture, margin_1HW in zip(pictures, margin_B1HW, strict=True):
            margin_hw = upsample(margin_1HW, (picture.height, picture.width))
            mask_hw = margin_hw >= 0
            confidence = float(margin_hw[mask_hw].sigmoid().mean()) if mask_hw.any() else None
            found.append(
                Prediction(mask_hw=mask_hw.numpy(), confidence=confidence, margin_HW=margin_1HW[0].numpy())
            )
        return found


def _checked_pairs(
    images: Sequence[Image.Image | np.ndarray], expressions: Sequence[str]
) -> list[Image.Image]:
    """The images as PIL's, once they and the expressions are known to be what a predictor takes."""
    if isinstance(images, Image.Image | str | Path) or isinstance(expressions, str):
        raise DataError("a predictor takes a list of images and a list of as many expressions")
    if len(images) != len(expressions):
        raise DataError(f"{len(images)} image(s) and {len(expressions)} expression(s); each image needs one")
    for number, expression in enumerate(expressions):
        if not isinstance(expression, str) or not expression.strip():
            raise DataError(f"expressions[{number}] is {expression!r}, not a text with a word in it")
    return [_picture(image, f"images[{number}]") for number, image in enumerate(images)]


def _picture(image: Image.Image | np.ndarray, where: str) -> Image.Image:
    """An image as PIL's in mode RGB."""
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise DataError(f"{where} has mode {image.mode}, not RGB; shared.images.read_image gives RGB")
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(f"{where} is an array {image.dtype} {list(image.shape)}, not uint8 [h, w, 3]")
        return Image.fromarray(image)
    raise DataError(
        f"{where} is a {type(image).__name__}, not an image: read a file by shared.images.read_image"
    )


def predict_one(
    model: str | Path, image: str | Path, expression: str, out: str | Path, *, with_overlay: bool = True
) -> dict[str, Any]:
    """Segment one image and write `<name>.mask.png`, `<name>.overlay.png` and `<name>.json` to a folder.

    The name (`file_stem`) is that of no other image and no other expression.

    Args:
        model: Run folder or model folder.
        image: Image file.
        expression: What to look for.
        out: Folder of the results, made if need be.
        with_overlay: Whether the overlay is written.

    Returns:
        The content of the JSON file, with the `files` written.

    Raises:
        DataError: An unusable model or image, a blank expression, or a folder that cannot be written to.
    """
    if not expression.strip():
        raise DataError("the expression is blank")
    picture = read_image(Path(image))
    predictor = Predictor.from_pretrained(model)
    say_unread(predictor.tokenise, [expression])
    (found,) = predictor([picture], [expression.strip()])
    files = files_of(Path(out), file_stem(Path(image), expression.strip()), with_overlay)
    return write_prediction(files, picture, found, found.record(str(image), expression.strip()))


def overlay(image: Image.Image, mask_hw: np.ndarray) -> Image.Image:
    """The image with the object tinted and outlined."""
    line = max(1, round(max(image.size) / 400))
    padded = np.pad(mask_hw, line)
    inner_hw = mask_hw.copy()
    for dy, dx in ((0, line), (2 * line, line), (line, 0), (line, 2 * line)):
        inner_hw &= padded[dy : dy + mask_hw.shape[0], dx : dx + mask_hw.shape[1]]
    outline_hw = mask_hw & ~inner_hw
    pixels_hw3 = np.asarray(image, dtype=np.float32)
    opacity_hw1 = np.where(outline_hw, 1.0, np.where(mask_hw, OVERLAY_OPACITY, 0.0))[..., None]
    mixed_hw3 = pixels_hw3 * (1 - opacity_hw1) + np.array(OVERLAY_RGB, np.float32) * opacity_hw1
    return Image.fromarray(mixed_hw3.round().astype(np.uint8))


def file_stem(image: Path, expression: str) -> str:
    """Name of a pair's files without ending: what can be read of both, and a hash of the text and the whole path."""
    pair = f"{image.resolve()}\0{expression}".encode(errors="surrogatepass")
    digest = hashlib.blake2b(pair, digest_size=6).hexdigest()
    slug = _cut(re.sub(r"[^\w]+", "-", expression.lower()).strip("-"), SLUG_BYTES).strip("-")
    return f"{_cut(image.stem, STEM_BYTES)}.{slug or 'expression'}.{digest}"


def files_of(out: Path, name: str, with_overlay: bool) -> dict[str, Path]:
    """The files of a pair, by kind: `mask`, `overlay` where it is wanted, and `json`."""
    kinds = ("mask", "overlay") if with_overlay else ("mask",)
    return {kind: out / f"{name}.{kind}.png" for kind in kinds} | {"json": out / f"{name}.json"}


def write_prediction(
    files: Mapping[str, Path], picture: Image.Image, found: Prediction, record: dict[str, Any]
) -> dict[str, Any]:
    """Write the files of a pair (`files_of`), the JSON last.

    Returns:
        The record with the images among them under `files`, as the JSON holds it.

    Raises:
        DataError: The disk is full or forbids it, or a file is in the folder's place.
    """
    folder = files["json"].parent
    images = {kind: str(path) for kind, path in files.items() if kind != "json"}
    record = {**record, "files": images}
    with disk_errors(folder, "a prediction", "earlier ones are safe"):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found.mask_hw.astype(np.uint8) * 255).save(files["mask"])
        if "overlay" in files:
            overlay(picture, found.mask_hw).save(files["overlay"])
        files["json"].write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def _cut(text: str, most: int) -> str:
    """The beginning of a text that takes at most so many bytes."""
    return text.encode(errors="surrogateescape")[:most].decode(errors="ignore")
