"""What turns boxes into soft masks: one protocol, two implementations, chosen by `proposer.kind`. Imports no torch.

The run calls `propose` from one thread, chunk after chunk in row order, while the engine generates the next chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.json_files import read_json
from stage1_priors.config import ProposerConfig
from stage1_priors.devices import visible_gpus
from stage1_priors.proposals import Edges, propose

SAM_TYPES: dict[str, tuple[str, ...]] = {"sam2": ("sam2", "sam2_video"), "sam": ("sam",)}
"""`model_type` of the weights each kind can load; published SAM 2 weights hold the image model within a video one."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Some rows of the store, in row order, for which masks are wanted. B rows."""

    box_norm_B4: np.ndarray
    """float32 [B, 4], x1 y1 x2 y2 in the normalised frame of the original image; NaN without a usable box."""
    edges_B: tuple[Edges | None, ...]
    """What the model knew about each edge; None if nothing."""
    names_B: tuple[str, ...]
    """File name of each row's image; rows of one image are neighbours."""
    images_B: tuple[Image.Image | None, ...]
    """What the proposer has kept of each image, RGB; None where unreadable, or where it does not look."""
    continues: bool = False
    """Whether the rows follow on those of the last call, so that its last image need not be looked at again."""


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Soft masks of a batch of rows."""

    map_BGG: np.ndarray
    """uint8 [B, G, G], round(255 x probability); `NO_PRIOR` throughout where there is no box."""
    iou_B: np.ndarray
    """float32 [B], the IoU the proposer expects of its mask, in [0, 1]; NaN if it does not say."""
    candidates_BMGG: np.ndarray | None = None
    """uint8 [B, M, G', G'], masks of whatever there is in the row's image, best first, absent ones all zero; None if
    not asked for."""


class ProposerFailed(DataError):
    """The proposer failed on the images it had in hand, which the message names."""


class Proposer(Protocol):
    """Something that turns boxes into soft masks. It is made before the engine is."""

    def load(self) -> None:
        """Be ready; called once the engine is up, which on a GPU takes its share of the memory first."""
        ...

    def kept(self, image: Image.Image) -> Image.Image | None:
        """What is kept of an original image until its masks are made: it, or one of the same masks; None: nothing.

        Called from another thread than the one that calls `propose`.
        """
        ...

    def kept_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what is kept of an image of some height and width; zeros for nothing."""
        ...

    def propose(self, prompts: Prompts) -> Proposals:
        """Soft masks of all rows, in order."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class BoxProposer:
    """Masks from the boxes alone (`proposals.py`)."""

    def __init__(self, config: ProposerConfig) -> None:
        """Keep the configuration."""
        self._config = config

    def load(self) -> None:
        """Nothing to load."""

    def kept(self, image: Image.Image) -> Image.Image | None:
        """Nothing: it does not look."""
        return None

    def kept_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """No size."""
        return 0, 0

    def propose(self, prompts: Prompts) -> Proposals:
        """Soft masks of all rows, in order; no IoU is expected of them."""
        return Proposals(
            map_BGG=propose(prompts.box_norm_B4, prompts.edges_B, self._config),
            iou_B=np.full(len(prompts.box_norm_B4), np.nan, np.float32),
        )

    def close(self) -> None:
        """Nothing to free."""


def _box(config: ProposerConfig, folder: Path | None) -> Proposer:
    return BoxProposer(config)


def _sam(config: ProposerConfig, folder: Path | None) -> Proposer:
    from stage1_priors.sam_host import SamApart, SamHere

    assert folder is not None, f"proposer {config.kind} without a model folder"
    apart = not visible_gpus() if config.own_process is None else config.own_process
    return (SamApart if apart else SamHere)(config, folder)


@dataclass(frozen=True, kw_only=True)
class ProposerKind:
    """A value of `proposer.kind`: how its proposer is made, and which fields of `ProposerConfig` that one reads.

    Every kind has `kind` and `grid`; a field that is not named here is none of its own.
    """

    make: Callable[[ProposerConfig, Path | None], Proposer]
    """(Configuration, folder of its model or None) -> a proposer."""
    reads: tuple[str, ...] = ()
    """Fields that its masks depend on: part of the fingerprint of its stores, and of no others."""
    speed: tuple[str, ...] = ()
    """Fields that it reads and that no mask depends on."""


_SAM = ProposerKind(
    make=_sam,
    reads=("path", "revision", "multimask", "dtype", "candidates"),
    speed=("batch_images", "batch_boxes", "own_process", "threads"),
)
PROPOSERS: dict[str, ProposerKind] = {
    "soft-box": ProposerKind(make=_box, reads=("smoothing", "softness", "max_share")),
    "box": ProposerKind(make=_box),
    "sam2": _SAM,
    "sam": _SAM,
}
"""Proposer by `proposer.kind`."""


def check_sam_folder(kind: str, folder: Path) -> None:
    """See that a folder holds the kind of model that is asked for.

    Raises:
        DataError: No readable `config.json`, or one of another type of model.
    """
    path = folder / "config.json"
    found = read_json(path).get("model_type")
    if found not in SAM_TYPES[kind]:
        raise DataError(
            f"{path}: model_type is {found!r}, proposer.kind={kind} needs {' or '.join(SAM_TYPES[kind])}"
        )
