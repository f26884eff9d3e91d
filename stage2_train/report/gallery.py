"""The cards of the gallery: sentences with their pictures as small images and outlines.

Pictures are bounded in number and in bytes; what did not fit is counted.

Frame: thumbnails; every mask is resized (nearest) to its thumbnail, rows down, columns right.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.masks import decode_segmentation, resize_mask_nearest
from shared.types import Sample
from stage2_train.report.choice import Choice, choose
from stage2_train.report.data_source import DataSource
from stage2_train.report.outlines import mask_path
from stage2_train.report.run_data import RunData, finite
from stage2_train.report.sources import Proposal, Sources
from stage2_train.report.stats import num_words

PER_TAG = 12
"""Sentences for each reason, shared among the splits."""
MAX_TAUGHT = 8
"""Training examples shown for each run."""
_TAUGHT_MASKS = ("weak_HW", "target_HW", "foreground_HW", "background_HW")
TRUTH = "ground truth"
"""Title of the picture with the true mask."""
MAX_RUNS = 6
"""Predictions shown side by side."""
THUMB_PX = 224
"""Longer side of a thumbnail."""
BUDGET_BYTES = 5_500_000
"""All pictures together."""
PRIOR_RGB = (230, 159, 0)
"""Colour of a soft prior (Okabe-Ito orange)."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One small picture of a card."""

    title: str
    """What it shows."""
    caption: str
    """A figure under it, or empty."""
    layers: tuple[tuple[str, str], ...]
    """(CSS class, SVG path), drawn in order over the image."""
    soft: str = ""
    """Data URI of a soft mask over the image, or empty."""
    missing: str = ""
    """Why there is nothing to see, or empty."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One sentence with its pictures."""

    key: str
    """Id within the page."""
    expression: str
    """The sentence, as in the data."""
    sample_id: str
    """Identity of the sample."""
    split: str
    """Split it comes from."""
    tags: tuple[str, ...]
    """Why it was chosen."""
    words: int
    """Words of the sentence."""
    ious: tuple[float | None, ...]
    """IoU at the original size, one per run shown."""
    prior_iou: float | None
    """IoU of the frozen prior."""
    change: float
    """Last run minus first, or run minus prior."""
    image: str
    """Data URI of the thumbnail, or empty."""
    size_hw: tuple[int, int]
    """Thumbnail size, pixels."""
    pictures: tuple[Picture, ...]
    """Left to right."""
    answer: str = ""
    """What the multimodal model said and how sure it was, or empty."""

    @property
    def has_truth(self) -> bool:
        """Whether the true mask is among its pictures."""
        return any(picture.title == TRUTH and picture.layers for picture in self.pictures)

    @property
    def num_bytes(self) -> int:
        """Bytes of its pictures in the page."""
        drawn = sum(len(path) for picture in self.pictures for _, path in picture.layers)
        return len(self.image) + drawn + sum(len(picture.soft) for picture in self.pictures)


def build_gallery(runs: list[RunData], sources: Sources) -> tuple[list[Card], int]:
    """The cards of all splits, best first within a split, and how many did not fit.

    Args:
        runs: The runs; at most the first `MAX_RUNS` are shown, with the splits whose sentences are the same for all.
        sources: Images, true masks and priors.
    """
    shown = runs[:MAX_RUNS]
    splits = {
        split: source
        for split in (shown[0].evals if shown else ())
        if all(split in run.evals and run.data_of(split) == shown[0].data_of(split) for run in shown)
        and (source := sources.scored_on(shown[0], shown[0].evals[split])) is not None
    }
    per_tag = max(3, math.ceil(PER_TAG / max(1, len(splits))))
    cards: list[Card] = []
    left_out, spent = 0, 0
    for split, source in splits.items():
        rows = [run.evals[split].by_id() for run in shown]
        choices = choose(rows, split, per_tag)
        wanted = {choice.sample_id for choice in choices}
        masks = [run.evals[split].predictions(wanted) for run in shown]
        for choice in choices:
            key = choice.sample_id
            own = [row[key] | {"pred_rle": rle.get(key)} for row, rle in zip(rows, masks, strict=True)]
            card = _card(choice, shown, own, sources, source, key=f"c{len(cards)}")
            if spent + card.num_bytes > BUDGET_BYTES:
                left_out += 1
                continue
            spent += card.num_bytes
            cards.append(card)
    return cards, left_out


def taught_cards(run: RunData, sources: Sources, *, key: str, budget_bytes: int) -> list[Card]:
    """What the run was taught from: the prior it read, weak view, fused map, pixels that were taught, true mask."""
    cards: list[Card] = []
    source = sources.trained_on(run)
    for item in sources.taught(run, MAX_TAUGHT):
        frame = _Frame(item.sample, source)
        fitted = {name: resize_mask_nearest(getattr(item, name), frame.size_hw) for name in _TAUGHT_MASKS}
        pixels = [("fg", fitted["foreground_HW"]), ("bg", fitted["background_HW"])]
        proposal = sources.prior(run.name, item.prior_of)
        misplaced = "" if item.prior_of == item.sample.sample_id else "of another object"
        pictures = (
            frame.picture("image"),
            *([_prior_picture(frame, proposal, misplaced)] if item.prior_of else []),
            frame.picture("weak view (Pw)", masks=[("weak", fitted["weak_HW"])]),
            frame.picture("map the labels are cut from", masks=[("fused", fitted["target_HW"])]),
            frame.picture("pixels taught", masks=pixels),
            _truth_picture(frame),
        )
        card = Card(
            key=f"{key}-{len(cards)}",
            expression=item.sample.expression,
            sample_id=item.sample.sample_id,
            split=item.sample.split,
            tags=(),
            words=num_words(item.sample.expression),
            ious=(),
            prior_iou=None,
            change=0.0,
            image=frame.image,
            size_hw=frame.size_hw,
            pictures=pictures,
            answer=_answer_text(proposal),
        )
        budget_bytes -= card.num_bytes
        if budget_bytes < 0:
            break
        cards.append(card)
    return cards


def _card(
    choice: Choice,
    runs: list[RunData],
    rows: list[dict[str, Any]],
    sources: Sources,
    source: DataSource,
    *,
    key: str,
) -> Card:
    frame = _Frame(source.sample(choice.sample_id), source)
    priors = [(finite(row.get("prior_iou_original")), run.name) for run, row in zip(runs, rows, strict=True)]
    prior_iou, name = min(priors, key=lambda one: (one[0] is None, one[1] not in sources.stores))
    proposal = sources.prior(name, choice.sample_id)
    pictures = [frame.picture("image"), _prior_picture(frame, proposal, _iou_text(prior_iou))]
    truth = frame.truth()
    for index, (run, row) in enumerate(zip(runs, rows, strict=True)):
        masks = [(f"pred s{index}", frame.decode(row.get("pred_rle"))), ("truth-line", truth)]
        pictures.append(frame.picture(run.name, _iou_text(row.get("iou_original")), masks=masks))
    pictures.append(_truth_picture(frame))
    expression = str(rows[0].get("expression", ""))
    return Card(
        key=key,
        expression=expression,
        sample_id=choice.sample_id,
        split=choice.split,
        tags=choice.tags,
        words=num_words(expression),
        ious=tuple(finite(row.get("iou_original")) for row in rows),
        prior_iou=prior_iou,
        change=choice.change,
        image=frame.image,
        size_hw=frame.size_hw,
        pictures=tuple(pictures),
        answer=_answer_text(proposal),
    )


class _Frame:
    """The thumbnail of one sample and the masks drawn over it."""

    def __init__(self, sample: Sample | None, source: DataSource) -> None:
        self.sample, self._source = sample, source
        image = source.image(sample) if sample is not None else None
        height, width = (sample.height, sample.width) if sample is not None else (THUMB_PX, THUMB_PX)
        scale = min(1.0, THUMB_PX / max(height, width, 1))
        self.size_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
        self.image = _jpeg_uri(image, self.size_hw) if image is not None else ""

    def decode(self, rle: Any) -> np.ndarray | None:
        """Bool [h, w] at thumbnail size of a run-length mask at the original size; None if it cannot be read."""
        if not isinstance(rle, dict):
            return None
        try:
            height, width = (int(side) for side in rle["size"])
            if not 0 < height * width <= 10**8:
                return None
            return resize_mask_nearest(decode_segmentation(rle, height, width), self.size_hw)
        except (DataError, ValueError, TypeError, KeyError):
            return None

    def truth(self) -> np.ndarray | None:
        """Bool [h, w] at thumbnail size."""
        mask = self._source.truth(self.sample) if self.sample is not None else None
        return None if mask is None else resize_mask_nearest(mask, self.size_hw)

    def picture(
        self,
        title: str,
        caption: str = "",
        *,
        masks: Sequence[tuple[str, np.ndarray | None]] = (),
    ) -> Picture:
        """The thumbnail with masks over it; a missing first mask is said in words."""
        missing = "" if self.image or masks else "image missing"
        if masks and masks[0][1] is None:
            missing = "not available"
        layers = tuple((name, mask_path(mask)) for name, mask in masks if mask is not None)
        return Picture(title=title, caption=caption, layers=layers, missing=missing)


def _prior_picture(frame: _Frame, proposal: Proposal | None, caption: str) -> Picture:
    if proposal is None or proposal.soft_GG is None:
        missing = "not available" if proposal is None else f"no box ({proposal.status})"
        return Picture(title="frozen prior", caption=caption, layers=(), missing=missing)
    line = mask_path(resize_mask_nearest(proposal.soft_GG >= 128, frame.size_hw))
    return Picture(
        title="frozen prior",
        caption=caption,
        layers=(("prior-line", line),),
        soft=_soft_uri(proposal.soft_GG),
    )


def _answer_text(proposal: Proposal | None) -> str:
    """`status; raw text; mean log-probability`, shortened; empty without a store."""
    if proposal is None:
        return ""
    said = proposal.answer if len(proposal.answer) <= 160 else proposal.answer[:159] + "…"
    sure = "" if proposal.confidence is None else f"; mean log-probability {proposal.confidence:.2f}"
    return f"{proposal.status}; {said or '(no text)'}{sure}"


def _truth_picture(frame: _Frame) -> Picture:
    return frame.picture(TRUTH, masks=[("truth", frame.truth())])


def _jpeg_uri(image: Image.Image, size_hw: tuple[int, int]) -> str:
    small = image.convert("RGB").resize((size_hw[1], size_hw[0]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _soft_uri(soft_GG: np.ndarray) -> str:
    """A PNG of one colour whose opacity is the probability (at most 0.75, so that the image stays visible)."""
    picture = Image.fromarray(soft_GG, mode="P")
    picture.putpalette(PRIOR_RGB * 256)
    buffer = io.BytesIO()
    picture.save(
        buffer, "PNG", transparency=bytes(round(level * 0.75) for level in range(256)), optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _iou_text(value: Any) -> str:
    number = finite(value)
    return "" if number is None else f"IoU {number:.2f}"
