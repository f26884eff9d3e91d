"""An opened store with what is needed to show its rows: catalogue, images, soft masks.

Legend: G side of the proposal grid.
"""

import io
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.refer import ReferDataset
from shared.store.reader import PriorStore
from shared.store.schema import EXPRESSION_BYTES, RAW_TEXT_BYTES, may_be_cut
from shared.types import STATUS_BY_CODE, AnswerStatus, Sample
from stage1_priors.inspect.catalogue import Catalogue
from stage1_priors.store_data import dataset_of

IMAGE_SIDE = 480
"""Longest side of an image in the page, pixels."""
PRIOR_RGB = (230, 159, 0)
"""Colour of the soft mask; its opacity is the probability times `PRIOR_OPACITY`."""
PRIOR_OPACITY = 0.75


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row as it is shown."""

    row: int
    sample_id: str
    expression: str
    split: str
    image_id: int
    image_hw: tuple[int, int]
    """Size of the original image, pixels."""
    status: AnswerStatus
    raw_text: str
    """The model's answer."""
    num_tokens: int
    confidence: float | None
    proposer_iou: float | None
    box_xyxy_px: tuple[float, ...] | None
    """In pixels of the original image."""


class View:
    """A store, its catalogue and, where they can still be read, its images.

    Attributes:
        store: The reader; its rows are read by one thread at a time.
        catalogue: The small columns.
        missing: Why no image can be shown; empty if they can.
    """

    def __init__(
        self, store: PriorStore, catalogue: Catalogue, dataset: ReferDataset | None, missing: str
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.missing = missing
        self._dataset = dataset
        self._samples: dict[str, Sample] = {}
        if dataset is not None:
            self._samples = {sample.sample_id: sample for sample in dataset.samples()}
        self._lock = threading.Lock()

    def pairs(self, rows: np.ndarray) -> list[Pair]:
        """Rows of finished shards, ready to be shown."""
        with self._lock:
            read = {name: self.store.batch(name, rows) for name in _NUMBERS}
            texts = {name: self.store.texts(name, rows) for name in ("expression", "raw_text", "sample_id")}
        return [
            Pair(
                row=int(row),
                sample_id=texts["sample_id"][at],
                expression=_marked(texts["expression"][at], EXPRESSION_BYTES),
                raw_text=_marked(texts["raw_text"][at], RAW_TEXT_BYTES),
                split=self.catalogue.splits[int(read["split"][at])],
                image_id=int(read["image_id"][at]),
                image_hw=(int(read["image_hw"][at, 0]), int(read["image_hw"][at, 1])),
                status=STATUS_BY_CODE[int(read["status"][at])],
                num_tokens=int(read["num_tokens"][at]),
                confidence=_known(read["confidence"][at]),
                proposer_iou=_known(read["proposer_iou"][at]),
                box_xyxy_px=_box_px(read["box_xyxy_norm"][at], read["image_hw"][at]),
            )
            for at, row in enumerate(rows)
        ]

    def image_jpeg(self, row: int) -> bytes:
        """The row's image, at most `IMAGE_SIDE` pixels wide and high.

        Raises:
            DataError: The row is not in the store, or its image cannot be read.
        """
        if self._dataset is None:
            raise DataError(self.missing)
        with self._lock:
            sample_id = self.store.texts("sample_id", [row])[0]
        if sample_id not in self._samples:
            raise DataError(f"sample {sample_id!r} is not in the data set")
        image = self._dataset.image(self._samples[sample_id])
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        return _encoded(image, "JPEG")

    def prior_png(self, row: int) -> bytes:
        """The row's soft mask [G, G]: one colour, as opaque as it is probable.

        Raises:
            DataError: The row is not in the store or not written yet.
        """
        with self._lock:
            proposal_GG = self.store.batch("proposal", [row])[0]
        rgba = np.empty((*proposal_GG.shape, 4), np.uint8)
        rgba[..., :3] = PRIOR_RGB
        rgba[..., 3] = np.rint(proposal_GG * PRIOR_OPACITY)
        return _encoded(Image.fromarray(rgba), "PNG")


_NUMBERS = (
    "split",
    "image_id",
    "image_hw",
    "status",
    "num_tokens",
    "confidence",
    "proposer_iou",
    "box_xyxy_norm",
)
"""Fields of a `Pair` that are not text."""


def open_view(path: Path, root: str = "") -> View:
    """Open a store; a data set that cannot be read, or is another one, costs the images and nothing else.

    Args:
        path: The store.
        root: Where the data set lies now; "": where it lay when the store was written.

    Raises:
        DataError: No store, a damaged one, or nothing in it yet.
    """
    store = PriorStore(path)
    catalogue = Catalogue(store)
    try:
        return View(store, catalogue, dataset_of(store, root), "")
    except DataError as error:
        return View(store, catalogue, None, str(error))


def _encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def _marked(text: str, width: int) -> str:
    """A text with an ellipsis where the store may hold its beginning alone."""
    return f"{text}…" if may_be_cut(text, width) else text


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _box_px(box_xyxy_norm: np.ndarray, image_hw: np.ndarray) -> tuple[float, ...] | None:
    if not np.isfinite(box_xyxy_norm).all():
        return None
    scale = np.array([image_hw[1], image_hw[0]] * 2, np.float64)
    return tuple(float(value) for value in np.round(box_xyxy_norm * scale, 2))
