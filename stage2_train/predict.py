"""Masks for images and expressions by a finished network, at the images' own size; no prior and no data set is read.

Legend: B pairs, H W model input, h w an image's own size.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shared.errors import DataError
from shared.image_pack import ImageStore
from shared.images import read_image
from shared.jsonl import read_lines
from shared.masks import encode_rle, mask_box_xyxy_px
from stage2_train.backbones.images import normalise_image
from stage2_train.run_files import model_folder
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.text import Tokenizer
from stage2_train.transforms import resize_image, upsample

OVERLAY_RGB = (230, 159, 0)
"""Colour of the object in overlays (Okabe-Ito orange)."""

OVERLAY_OPACITY = 0.45
"""Opacity of that colour; the outline is opaque."""

SLUG_CHARACTERS = 40
"""Longest part of an expression in a file name."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says about one pair."""

    mask_hw: np.ndarray
    """`bool [h, w]` at the image's own size."""
    confidence: float | None
    """Mean foreground probability over the mask, not calibrated; None for an empty mask."""

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
    """A network with its tokenizer on the machine's device."""

    def __init__(self, model: ReferringSegmentor) -> None:
        """Move the network to the device."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.tokenise = Tokenizer(model.config)
        self.side = model.config.vision.image_size

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Predictor":
        """From a run folder or a model's folder; raises DataError if it is neither."""
        return cls(ReferringSegmentor.from_pretrained(model_folder(Path(path))))

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Prediction]:
        """Segment B pairs in one pass; images are RGB of any size."""
        image_BHW3 = np.stack([resize_image(image, self.side, self.side) for image in images])
        ids_BT, token_mask_BT = self.tokenise(expressions)
        inputs = [t.to(self.device) for t in (torch.from_numpy(image_BHW3), ids_BT, token_mask_BT)]
        logit_B2HW = self.model(normalise_image(inputs[0]), *inputs[1:]).float()
        margin_B1HW = (logit_B2HW[:, 1:] - logit_B2HW[:, :1]).cpu()
        found = []
        for image, margin_1HW in zip(images, margin_B1HW, strict=True):
            margin_hw = upsample(margin_1HW, (image.height, image.width))
            mask_hw = margin_hw > 0
            confidence = float(margin_hw[mask_hw].sigmoid().mean()) if mask_hw.any() else None
            found.append(Prediction(mask_hw=mask_hw.numpy(), confidence=confidence))
        return found


def predict_one(model: str | Path, image: str | Path, expression: str, out: str | Path) -> dict[str, Any]:
    """Segment one image and write `<name>.mask.png`, `<name>.overlay.png` and `<name>.json` to a folder.

    Args:
        model: Run folder or model folder.
        image: Image file.
        expression: What to look for.
        out: Folder of the results, made if need be.

    Returns:
        The content of the JSON file, with the `files` written.

    Raises:
        DataError: An unusable model or image, or a blank expression.
    """
    if not expression.strip():
        raise DataError("the expression is blank")
    picture = read_image(Path(image))
    (found,) = Predictor.from_pretrained(model)([picture], [expression.strip()])
    name = f"{Path(image).stem}.{_slug(expression)}"
    return _write(Path(out), name, picture, found, found.record(str(image), expression.strip()))


def predict_jsonl(
    model: str | Path, pairs: str | Path, out: str | Path, *, batch: int = 16
) -> dict[str, Any]:
    """Segment the pairs of a JSONL file (`shared.jsonl`; labels in it are not looked at).

    Writes the three files of each pair, their names starting with its line, and `predictions.jsonl`, one object a pair.

    Args:
        model: Run folder or model folder.
        pairs: The JSONL file; images are relative to its folder.
        out: Folder of the results, made if need be.
        batch: Pairs per pass.

    Returns:
        `num` pairs, `num_empty` of them without a pixel, and where the results lie.

    Raises:
        DataError: An unusable model, line or image; results of earlier pairs stay.
    """
    pairs, out = Path(pairs), Path(out)
    lines = read_lines(pairs)
    width = len(str(lines[-1].number))
    predictor = Predictor.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    num_empty = 0
    with (out / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for part in _parts(lines, batch):
            pictures = [_picture(pairs, line.number, line.image) for line in part]
            found = predictor(pictures, [line.expression for line in part])
            for line, picture, prediction in zip(part, pictures, found, strict=True):
                record = {"line": line.number, **prediction.record(line.image, line.expression)}
                name = f"{line.number:0{width}d}.{Path(line.image).stem}.{_slug(line.expression)}"
                file.write(
                    json.dumps(_write(out, name, picture, prediction, record), ensure_ascii=False) + "\n"
                )
                num_empty += not prediction.mask_hw.any()
    return {"num": len(lines), "num_empty": num_empty, "predictions": str(out / "predictions.jsonl")}


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


def _write(
    out: Path, name: str, picture: Image.Image, found: Prediction, record: dict[str, Any]
) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    files = {kind: f"{name}.{kind}.png" for kind in ("mask", "overlay")}
    Image.fromarray(found.mask_hw.astype(np.uint8) * 255).save(out / files["mask"])
    overlay(picture, found.mask_hw).save(out / files["overlay"])
    record = {**record, "files": {kind: str(out / file) for kind, file in files.items()}}
    (out / f"{name}.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def _picture(pairs: Path, number: int, name: str) -> Image.Image:
    try:
        return ImageStore(pairs.parent, ("",)).read(name)
    except DataError as error:
        raise DataError(f"{pairs}: line {number}: {error}") from error


def _parts(lines: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (lines[start : start + size] for start in range(0, len(lines), size))


def _slug(text: str) -> str:
    """Letters and digits of a text, joined by hyphens; what is cut off is told apart by a hash."""
    whole = re.sub(r"[^\w]+", "-", text.lower()).strip("-")
    if len(whole) <= SLUG_CHARACTERS:
        return whole or "expression"
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    return f"{whole[:SLUG_CHARACTERS].strip('-')}-{digest}"
