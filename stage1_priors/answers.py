"""Between images, requests, answers and rows: the pure middle of stage 1, used by the run and by the canary alike.

Legend: B rows of a batch. Frames as in `families/family.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shared.seeding import seed_of
from shared.types import STATUS_CODES, AnswerStatus
from stage1_priors.edges import edge_knowledge
from stage1_priors.engine import Answer, Request
from stage1_priors.families.family import Family, SizeRules, box_to_norm
from stage1_priors.proposals import Edges

RESAMPLING = Image.Resampling.BICUBIC
"""How an image gets the size in which the model sees it; part of the store's fingerprint."""


@dataclass(frozen=True, kw_only=True)
class AnswerRows:
    """Answers of a batch as columns."""

    status_B: np.ndarray
    """uint8 [B], `STATUS_CODES`."""
    raw_text_B: tuple[str, ...]
    """Text as generated; for error rows, the error."""
    box_xyxy_norm_B4: np.ndarray
    """float32 [B, 4] in the normalised frame of the original image, NaN without a usable box."""
    box_raw_xyxy_B4: np.ndarray
    """float32 [B, 4] as answered, in the model's own frame, x before y; NaN if no four numbers were found."""
    confidence_B: np.ndarray
    """float32 [B], mean log-probability of the coordinate tokens; NaN if unknown."""
    edge_logprob_B4: np.ndarray
    """float32 [B, 4], log-probability of each coordinate; NaN if unknown."""
    num_tokens_B: np.ndarray
    """int32 [B], generated tokens."""
    edges_B: tuple[Edges | None, ...]
    """Edge distributions for the proposer."""


def processed_image(image: Image.Image, family: Family, rules: SizeRules) -> Image.Image:
    """What the model sees of an original image: resized here, so that the frame of the answer is known."""
    height, width = family.processed_size(image.height, image.width, rules)
    return image if image.size == (width, height) else image.resize((width, height), RESAMPLING)


def request_about(
    processed: Image.Image, expression: str, family: Family, rules: SizeRules, sample_id: str = ""
) -> Request:
    """A request about what the model sees of an image."""
    tokens = family.num_image_tokens((processed.height, processed.width), rules)
    seed = seed_of("sampled boxes", sample_id) % 2**31
    return Request(image=processed, expression=expression, num_image_tokens=tokens, seed=seed)


def make_request(
    image: Image.Image, expression: str, family: Family, rules: SizeRules, sample_id: str = ""
) -> Request:
    """A request about an original image."""
    return request_about(processed_image(image, family, rules), expression, family, rules, sample_id)


def read_answers(
    answers: Sequence[Answer | None],
    processed_hw_B2: np.ndarray,
    family: Family,
    *,
    clip_tolerance: float,
    image_errors: Sequence[str] | None = None,
) -> AnswerRows:
    """Parse a batch of answers.

    Args:
        answers: B answers; None where the image could not be read and the model was not asked.
        processed_hw_B2: int [B, 2], size of the image the model saw.
        family: Gives notation and frame of the numbers.
        clip_tolerance: Share of the side by which a box may stick out and still be OK.
        image_errors: B texts; why there is no answer, for the rows without one.
    """
    num = len(answers)
    frame_hw_B2 = np.array([family.answer_frame_hw((int(h), int(w))) for h, w in processed_hw_B2]).reshape(
        -1, 2
    )
    status, text = np.zeros(num, np.uint8), [""] * num
    edges: list[Edges | None] = [None] * num
    box, raw = np.full((num, 4), np.nan, np.float32), np.full((num, 4), np.nan, np.float32)
    edge_logprob, confidence = np.full((num, 4), np.nan, np.float32), np.full(num, np.nan, np.float32)
    num_tokens = np.zeros(num, np.int32)
    for row, answer in enumerate(answers):
        if answer is None:
            status[row] = STATUS_CODES[AnswerStatus.IMAGE_ERROR]
            text[row] = image_errors[row] if image_errors is not None else ""
            continue
        num_tokens[row] = answer.num_tokens
        if answer.error is not None:
            status[row], text[row] = STATUS_CODES[AnswerStatus.ENGINE_ERROR], answer.error
            continue
        frame_hw = (int(frame_hw_B2[row, 0]), int(frame_hw_B2[row, 1]))
        parsed = family.parse(answer.text, frame_hw, answer.finish_reason, clip_tolerance)
        status[row], text[row] = STATUS_CODES[parsed.status], answer.text
        if parsed.box_raw_xyxy is not None:
            raw[row] = parsed.box_raw_xyxy
        if parsed.box_xyxy is None or parsed.spans is None:
            continue
        box[row] = parsed.box_xyxy
        knowledge = edge_knowledge(answer.text, answer.tokens, parsed.spans, frame_hw, family.unit)
        if knowledge is not None:
            edge_logprob[row], confidence[row] = knowledge.logprob_4, knowledge.confidence
            edges[row] = knowledge.prob_4
    return AnswerRows(
        status_B=status,
        raw_text_B=tuple(text),
        box_xyxy_norm_B4=box_to_norm(box, np.maximum(frame_hw_B2, 1)),
        box_raw_xyxy_B4=raw,
        confidence_B=confidence,
        edge_logprob_B4=edge_logprob,
        num_tokens_B=num_tokens,
        edges_B=tuple(edges),
    )


def box_iou(a_N4: np.ndarray, b_N4: np.ndarray) -> np.ndarray:
    """IoU of paired boxes (x1, y1, x2, y2 in one frame): float64 [N]; 0 where a box is NaN or has no area."""
    a_N4, b_N4 = np.asarray(a_N4, np.float64), np.asarray(b_N4, np.float64)
    corner = np.minimum(a_N4[:, 2:], b_N4[:, 2:]) - np.maximum(a_N4[:, :2], b_N4[:, :2])
    inter_N = np.clip(corner, 0, None).prod(1)
    areas = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(1) for box in (a_N4, b_N4)]
    union_N = areas[0] + areas[1] - inter_N
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.where(union_N > 0, inter_N / union_N, 0.0))
