"""The grounding check before a run: does this exact engine, with this model, put boxes where the objects are?

A version of an engine or of its image processing can shift every box without an error. So a few drawn scenes with one
object each, whose boxes are known, go through the same code as the data. The same numbers are also held against other
frames than the family's: if they fit clearly better there, the check fails even where the boxes do not miss by much
(pixels before and after a slight resize look alike). The other frame is named, and nothing is ever converted.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.seeding import rng
from shared.synth.scenes import SceneStyle, draw_scene
from stage1_priors.answers import box_iou, make_request, read_answers
from stage1_priors.config import CanaryConfig
from stage1_priors.engine import Engine, generate_isolated
from stage1_priors.families.family import PIXELS, SHARES, THOUSANDTHS, Family, SizeRules

STYLE = SceneStyle(num_objects=(1, 1), backgrounds=("flat",))
"""One object on a plain background."""
CHANCE_MARGIN = 0.1
"""A passing mean IoU is at least this far above that of answers held against other scenes' boxes."""
FRAME_MARGIN = 0.1
"""A frame in which the mean IoU is this much higher than in the family's own is the one the model answers in."""
PIXELS_BEFORE = "pixels of the image before resizing"


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """Outcome of one check; kept in the store's attributes."""

    mode: str
    """`refuse`, `warn` or `skip`."""
    passed: bool | None
    """None if not checked."""
    scenes: int = 0
    """Scenes asked about."""
    with_box: int = 0
    """Answers with a usable box."""
    mean_iou: float = 0.0
    """Mean IoU with the true boxes, answers without a box counting 0."""
    hit_rate: float = 0.0
    """Share of answers with IoU of at least 0.5."""
    chance_iou: float = 0.0
    """Mean IoU of the same answers with the next scene's box."""
    frame: str = ""
    """The family's own frame."""
    other_frame: str | None = None
    """A frame in which the boxes would fit instead."""
    first_answer: str = ""
    """Text of the first answer."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def line(self) -> str:
        """One line for a person."""
        text = (
            f"canary: mean IoU {self.mean_iou:.2f} on {self.scenes} drawn scenes ({self.with_box} boxes, "
            f"{self.hit_rate:.0%} at IoU 0.5, chance {self.chance_iou:.2f})"
        )
        if self.other_frame:
            text += (
                f"; they were read as {self.frame}, the boxes would fit in another frame: {self.other_frame}"
            )
        return text


def draw_canary(config: CanaryConfig) -> tuple[list[Image.Image], list[str], np.ndarray]:
    """The scenes: images, phrases and true boxes (float [n, 4] in the normalised frame)."""
    images, phrases, boxes = [], [], []
    for index in range(config.scenes):
        scene = draw_scene(rng("canary", config.seed, index), STYLE)
        image = Image.fromarray(scene.image_HW3)
        side = (image.width * config.scale, image.height * config.scale)
        images.append(image.resize(side, Image.Resampling.NEAREST) if config.scale > 1 else image)
        phrases.append(f"{scene.objects[0].colour} {scene.objects[0].shape}")
        boxes.append(scene.boxes_xyxy_px[0] / scene.image_HW3.shape[0])
    return images, phrases, np.stack(boxes)


def run_canary(
    engine: Engine, family: Family, rules: SizeRules, config: CanaryConfig, clip_tolerance: float = 0.02
) -> CanaryResult:
    """Ask the engine about the drawn scenes.

    Raises:
        DataError: The check failed and the mode is `refuse`.
    """
    if config.mode == "skip":
        return CanaryResult(mode="skip", passed=None)
    images, phrases, truth_N4 = draw_canary(config)
    requests = [
        make_request(image, phrase, family, rules) for image, phrase in zip(images, phrases, strict=True)
    ]
    processed_N2 = np.array([(request.image.height, request.image.width) for request in requests])
    answers = generate_isolated(engine, requests)
    rows = read_answers(answers, processed_N2, family, clip_tolerance=clip_tolerance)
    iou_N = box_iou(rows.box_xyxy_norm_B4, truth_N4)
    mean, chance = float(iou_N.mean()), float(box_iou(rows.box_xyxy_norm_B4, np.roll(truth_N4, 1, 0)).mean())
    original_N2 = np.array([(image.height, image.width) for image in images])
    other = fitting_frame(
        rows.box_raw_xyxy_B4, truth_N4, processed_N2, original_N2, family.frame, config.min_mean_iou
    )
    seen = mean >= config.min_mean_iou and (config.scenes < 2 or mean >= chance + CHANCE_MARGIN)
    passed = seen and other is None
    result = CanaryResult(
        mode=config.mode,
        passed=passed,
        scenes=config.scenes,
        with_box=int(np.isfinite(rows.box_xyxy_norm_B4).all(1).sum()),
        mean_iou=mean,
        hit_rate=float((iou_N >= 0.5).mean()),
        chance_iou=chance,
        frame=family.frame,
        other_frame=other,
        first_answer=rows.raw_text_B[0][:200],
    )
    if not passed and config.mode == "refuse":
        raise DataError(
            f"{result.line()}; at least {config.min_mean_iou} is required, so nothing is written. First answer: "
            f"{result.first_answer!r}. Look for a changed engine or model; canary.mode=warn goes on regardless"
        )
    return result


def fitting_frame(
    raw_N4: np.ndarray,
    truth_N4: np.ndarray,
    processed_N2: np.ndarray,
    original_N2: np.ndarray,
    own_frame: str,
    min_mean_iou: float,
) -> str | None:
    """The frame in which the raw numbers fit best, if it is another than the family's own and they fit clearly better.

    Args:
        raw_N4: Numbers as answered, NaN if none.
        truth_N4: True boxes in the normalised frame.
        processed_N2: Size (height, width) of each image as the model saw it.
        original_N2: Size of each image as given.
        own_frame: `frame` of the family.
        min_mean_iou: Least mean IoU of a frame that is named.

    Returns:
        Its name; None if there is no such frame.
    """
    extents: dict[str, np.ndarray] = {
        PIXELS_BEFORE: original_N2[:, [1, 0, 1, 0]],
        PIXELS: processed_N2[:, [1, 0, 1, 0]],
        THOUSANDTHS: np.full((len(raw_N4), 4), 1000),
        SHARES: np.ones((len(raw_N4), 4)),
    }
    arrangements = {
        "": raw_N4,
        ", y before x": raw_N4[:, [1, 0, 3, 2]],
        ", corner and size": np.concatenate([raw_N4[:, :2], raw_N4[:, :2] + raw_N4[:, 2:]], 1),
    }
    scores = {
        frame + arrangement: float(box_iou(_sorted_corners(boxes_N4) / extent_N4, truth_N4).mean())
        for frame, extent_N4 in extents.items()
        for arrangement, boxes_N4 in arrangements.items()
    }
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= max(min_mean_iou, scores[own_frame] + FRAME_MARGIN) else None


def _sorted_corners(box_N4: np.ndarray) -> np.ndarray:
    first_N2, second_N2 = box_N4[:, :2], box_N4[:, 2:]
    return np.concatenate([np.minimum(first_N2, second_N2), np.maximum(first_N2, second_N2)], 1)
