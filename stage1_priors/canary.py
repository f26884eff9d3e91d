"""The grounding check before a run: does this exact engine, with this model, put boxes where the objects are?

A version of an engine or of its image processing can shift every box without an error. So a few drawn scenes with one
object each, whose boxes are known, go through the same code as the data. Where the model sees other shapes than
squares some of them stand in images of 4:3 and 3:4, as photos do, and where it cuts images into tiles some are large
enough for several. Each shape must pass by itself: swapped sides, or an image padded to a square, leave squares alone.

The same numbers are also held against other frames than the family's: if they fit clearly better there, the check fails
even where the boxes do not miss by much (pixels before and after a slight resize look alike). The other frame is named,
and nothing is ever converted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.seeding import rng
from shared.synth.scenes import SCENE_SIZE_PX, SceneStyle, draw_scene
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
MAX_SCALE = 16
"""Greatest enlargement of a scene in search of one that the model sees in several tiles."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """An image on which a scene stands."""

    name: str
    """What it is called in messages."""
    height: int
    """Pixels before enlargement, no less than a scene's."""
    width: int
    """As above."""
    scale: int = 1
    """Whole-number enlargement of the image."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return self.height * self.scale, self.width * self.scale


SQUARE = Canvas(name="square", height=SCENE_SIZE_PX, width=SCENE_SIZE_PX)
WIDE = Canvas(name="4:3", height=SCENE_SIZE_PX * 9 // 8, width=SCENE_SIZE_PX * 3 // 2)
TALL = Canvas(name="3:4", height=WIDE.width, width=WIDE.height)
TILED = "several tiles"


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
    shape: str = ""
    """Shape of the images whose mean IoU is lowest."""
    shape_iou: float = 0.0
    """That mean IoU."""
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
        if self.shape_iou < self.mean_iou:
            text += f", lowest in images of shape {self.shape}: {self.shape_iou:.2f}"
        if self.other_frame:
            text += (
                f"; they were read as {self.frame}, the boxes would fit in another frame: {self.other_frame}"
            )
        return text


def canvases_of(family: Family, rules: SizeRules, scale: int) -> tuple[Canvas, ...]:
    """The canvases that the model sees in shapes or numbers of tiles of their own; a square comes first.

    Args:
        family: Says in which size it sees an image.
        rules: Its limits.
        scale: Enlargement of the scenes.
    """

    def seen(canvas: Canvas) -> tuple[int, int]:
        return family.processed_size(*canvas.size_hw, rules)

    square, wide, tall = (replace(canvas, scale=scale) for canvas in (SQUARE, WIDE, TALL))
    found = [square]
    if seen(wide)[1] > seen(wide)[0] and seen(tall)[0] > seen(tall)[1]:
        found += [wide, tall]
    if rules.cell_tokens > 1 and _num_cells(seen(square), rules) == 1:
        larger = (replace(SQUARE, name=TILED, scale=one) for one in range(scale + 1, MAX_SCALE + 1))
        found += [canvas for canvas in larger if _num_cells(seen(canvas), rules) > 1][:1]
    return tuple(found)


def _num_cells(processed_hw: tuple[int, int], rules: SizeRules) -> int:
    return (processed_hw[0] // rules.factor) * (processed_hw[1] // rules.factor)


def draw_canary(
    config: CanaryConfig, canvases: Sequence[Canvas]
) -> tuple[list[Image.Image], list[str], np.ndarray]:
    """The scenes, on the canvases in turn: images, phrases and true boxes (float [n, 4] in the normalised frame)."""
    images, phrases, boxes = [], [], []
    for index in range(config.scenes):
        canvas, generator = canvases[index % len(canvases)], rng("canary", config.seed, index)
        scene = draw_scene(generator, STYLE)
        side = scene.image_HW3.shape[0]
        top, left = (int(generator.integers(room - side + 1)) for room in (canvas.height, canvas.width))
        pixels_HW3 = np.empty((canvas.height, canvas.width, 3), np.uint8)
        pixels_HW3[:] = np.median(scene.image_HW3, axis=(0, 1))  # the background, which is flat
        pixels_HW3[top : top + side, left : left + side] = scene.image_HW3
        image = Image.fromarray(pixels_HW3)
        size = canvas.size_hw[::-1]
        images.append(image if image.size == size else image.resize(size, Image.Resampling.NEAREST))
        phrases.append(f"{scene.objects[0].colour} {scene.objects[0].shape}")
        box = scene.boxes_xyxy_px[0] + np.array([left, top, left, top])
        boxes.append(box / np.array([canvas.width, canvas.height] * 2))
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
    canvases = canvases_of(family, rules, config.scale)
    images, phrases, truth_N4 = draw_canary(config, canvases)
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
        rows.box_raw_xyxy_B4, truth_N4, processed_N2, original_N2, family, config.min_mean_iou
    )
    by_shape = {
        canvas.name: float(iou_N[first :: len(canvases)].mean())
        for first, canvas in enumerate(canvases[: config.scenes])
    }
    shape = min(by_shape, key=lambda name: by_shape[name])
    seen = by_shape[shape] >= config.min_mean_iou and (config.scenes < 2 or mean >= chance + CHANCE_MARGIN)
    passed = seen and other is None
    result = CanaryResult(
        mode=config.mode,
        passed=passed,
        scenes=config.scenes,
        with_box=int(np.isfinite(rows.box_xyxy_norm_B4).all(1).sum()),
        mean_iou=mean,
        hit_rate=float((iou_N >= 0.5).mean()),
        chance_iou=chance,
        shape=shape,
        shape_iou=by_shape[shape],
        frame=family.frame,
        other_frame=other,
        first_answer=rows.raw_text_B[0][:200],
    )
    if not passed and config.mode == "refuse":
        if all(answer.error is not None for answer in answers):
            raise DataError(
                f"canary: none of {config.scenes} drawn scenes could be asked about, so nothing is written: "
                f"{answers[0].error}"
            )
        raise DataError(
            f"{result.line()}; at least {config.min_mean_iou} is required of every shape, so nothing is written. "
            f"First answer: {result.first_answer!r}. Look for a changed engine, model or question; canary.mode=warn "
            "goes on regardless"
        )
    return result


def fitting_frame(
    raw_N4: np.ndarray,
    truth_N4: np.ndarray,
    processed_N2: np.ndarray,
    original_N2: np.ndarray,
    family: Family,
    min_mean_iou: float,
) -> str | None:
    """The frame in which the raw numbers fit best, if it is another than the family's own and they fit clearly better.

    A frame is judged by the images in which it differs from the family's own.

    Args:
        raw_N4: Numbers as answered, x before y, NaN if none.
        truth_N4: True boxes in the normalised frame.
        processed_N2: Size (height, width) of each image as the model saw it.
        original_N2: Size of each image as given.
        family: Gives its own frame, and the order in which it was read.
        min_mean_iou: Least mean IoU of a frame that is named.

    Returns:
        Its name; None if there is no such frame.
    """
    processed_N4, own_frame = processed_N2[:, [1, 0, 1, 0]], family.frame
    own_hw_N2 = np.array(
        [family.answer_frame_hw((int(height), int(width))) for height, width in processed_N2]
    )
    extents: dict[str, np.ndarray] = {
        PIXELS_BEFORE: original_N2[:, [1, 0, 1, 0]],
        PIXELS: processed_N4,
        THOUSANDTHS: np.full((len(raw_N4), 4), 1000),
        SHARES: np.ones((len(raw_N4), 4)),
        own_frame: own_hw_N2[:, [1, 0, 1, 0]],
    }
    arrangements = {
        "": raw_N4,
        ", y before x" if family.order == "xyxy" else ", x before y": raw_N4[:, [1, 0, 3, 2]],
        ", corner and size": np.concatenate([raw_N4[:, :2], raw_N4[:, :2] + raw_N4[:, 2:]], 1),
    }
    boxes = {
        frame + arrangement: _sorted_corners(numbers_N4) / extent_N4
        for frame, extent_N4 in extents.items()
        for arrangement, numbers_N4 in arrangements.items()
    }
    own_N4 = boxes[own_frame]
    share_N4 = processed_N4 / processed_N4.max(1, keepdims=True)  # of a square's side
    square_N4 = own_N4 * share_N4 if own_frame == PIXELS else own_N4
    boxes[f"{own_frame}, the image padded to a square around it"] = (
        square_N4 - (1 - share_N4) / 2
    ) / share_N4
    boxes[f"{own_frame}, the image padded to a square after it"] = square_N4 / share_N4
    if own_frame == PIXELS:
        boxes[f"{PIXELS}, height and width swapped"] = own_N4 * processed_N4 / processed_N4[:, [1, 0, 1, 0]]
    fits: dict[str, float] = {}
    for frame, box_N4 in boxes.items():
        told_apart_N = ~np.isclose(box_N4, own_N4).all(1)
        if told_apart_N.any():
            iou, own = (
                float(box_iou(one_N4[told_apart_N], truth_N4[told_apart_N]).mean())
                for one_N4 in (box_N4, own_N4)
            )
            if iou >= max(min_mean_iou, own + FRAME_MARGIN):
                fits[frame] = iou
    return max(fits, key=lambda frame: fits[frame], default=None)


def _sorted_corners(box_N4: np.ndarray) -> np.ndarray:
    first_N2, second_N2 = box_N4[:, :2], box_N4[:, 2:]
    return np.concatenate([np.minimum(first_N2, second_N2), np.maximum(first_N2, second_N2)], 1)
