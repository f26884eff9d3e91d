"""The records that travel between readers, stages and the store.

A *sample* is one (image, expression) pair. Its identity is `sample_id`, never its text (data sets repeat
expressions) and never its position in a list (splits and subsets reorder lists).
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One (image, expression) pair of a data set; the numbers of a JSONL file's pair are those of its lines."""

    sample_id: str
    """`"{dataset}.{split_by}.{sent_id}"`: unique and stable across runs and machines."""
    image_id: int
    """Image id of `instances.json`."""
    file_name: str
    """Image file name as annotated, relative to the image folder."""
    height: int
    """Height of the original image, pixels."""
    width: int
    """Width of the original image, pixels."""
    ref_id: int
    """Referred object (several sentences share one)."""
    ann_id: int
    """Annotation of `instances.json` holding the mask."""
    sent_id: int
    """Sentence id, unique within its refs file."""
    expression: str
    """The referring expression as written."""
    split: str
    """`train`, `val`, `test`, `testA` or `testB`."""
    no_target: bool = False
    """Whether the expression names nothing in the image; its mask is then empty by definition."""


class AnswerStatus(StrEnum):
    """What became of one model answer. Everything but `OK` is a counted outcome, never an exception."""

    OK = "ok"
    """Exactly one usable box (clipping by less than the tolerance included)."""
    MULTIPLE = "multiple"
    """Several boxes; the first was used."""
    CLIPPED = "clipped"
    """A box that left the frame and was clipped to it."""
    NO_BOX = "no_box"
    """Text without any box: a refusal, prose."""
    EMPTY = "empty"
    """No text at all."""
    TRUNCATED = "truncated"
    """The token limit cut the answer before a whole box."""
    REPEATED = "repeated"
    """The answer looped."""
    DEGENERATE = "degenerate"
    """A box of no area."""
    OUT_OF_RANGE = "out_of_range"
    """A box wholly outside the image or in another frame."""
    IMAGE_ERROR = "image_error"
    """The image could not be read; the model was not asked."""
    ENGINE_ERROR = "engine_error"
    """The engine failed on this request alone."""
    IMPORTED = "imported"
    """No model was asked: the mask came from outside. There is no box."""
    NOT_IMPORTED = "not_imported"
    """No model was asked, and the outside source holds no mask for the row."""

    @property
    def has_box(self) -> bool:
        """Whether the row carries a usable box."""
        return self in (AnswerStatus.OK, AnswerStatus.MULTIPLE, AnswerStatus.CLIPPED)

    @property
    def has_prior(self) -> bool:
        """Whether the row's soft mask says anything: it came from a usable box or from outside."""
        return self.has_box or self is AnswerStatus.IMPORTED


STATUS_CODES: dict[AnswerStatus, int] = {status: code for code, status in enumerate(AnswerStatus, start=1)}
"""Codes stored in the `status` array (u8). 0 is never written: it would mean a row nobody wrote."""

STATUS_BY_CODE: dict[int, AnswerStatus] = {code: status for status, code in STATUS_CODES.items()}
