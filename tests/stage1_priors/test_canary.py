"""The grounding check: right engines pass, shifted frames are refused and named."""

from dataclasses import replace

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store.reader import PriorStore
from shared.store.verify import store_status
from stage1_priors.answers import box_iou
from stage1_priors.canary import (
    FRAME_MARGIN,
    PIXELS_BEFORE,
    SQUARE,
    TALL,
    TILED,
    WIDE,
    canvases_of,
    draw_canary,
    fitting_frame,
    run_canary,
)
from stage1_priors.config import CanaryConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.engine import Answer, Request, failed_answer
from stage1_priors.families import INTERNVL, LLAVA_ONEVISION, QWEN2_5_VL, QWEN3_VL, SizeRules
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import (
    FakeEngine,
    box_answer,
    random_box_answer,
    seen_box_answer,
    seen_box_px,
)

RULES = SizeRules(
    factor=28, min_pixels=12544, max_pixels=12544, processor_min_pixels=12544, processor_max_pixels=12544
)
SEEN = CanaryConfig(mode="warn")


def tiles(side):
    """One tile or square of this side."""
    return SizeRules(
        factor=side,
        min_pixels=side**2,
        max_pixels=side**2,
        processor_min_pixels=side**2,
        processor_max_pixels=side**2,
    )


def roomy(factor, least, most, cell_tokens=1):
    """Limits in cells between which the shape of an image is kept."""
    low, high = least * factor**2, most * factor**2
    return SizeRules(
        factor=factor,
        min_pixels=low,
        max_pixels=high,
        processor_min_pixels=low,
        processor_max_pixels=high,
        cell_tokens=cell_tokens,
    )


ROOMY = {
    "qwen2_5_vl": (QWEN2_5_VL, roomy(28, 4, 1280)),
    "qwen3_vl": (QWEN3_VL, roomy(32, 4, 1280)),
    "internvl": (INTERNVL, roomy(448, 1, 12, 256)),
    "llava_onevision": (LLAVA_ONEVISION, roomy(384, 1, 36, 729)),
}
"""The same families with limits as published."""
FAMILIES = {
    "qwen2_5_vl": (QWEN2_5_VL, RULES),
    "qwen3_vl": (QWEN3_VL, tiles(192)),
    "internvl": (INTERNVL, tiles(448)),
    "llava_onevision": (LLAVA_ONEVISION, tiles(384)),
}
FRAMES = {
    "pixels of the image before resizing": lambda share, size: [round(value * 128) for value in share],
    "pixels of the resized image": lambda share, size: [round(value * size) for value in share],
    "0 to 1000": lambda share, size: [round(value * 1000) for value in share],
    "0 to 1": lambda share, size: [round(value, 3) for value in share],
    "0 to 1000, y before x": lambda share, size: [round(share[k] * 1000) for k in (1, 0, 3, 2)],
    "0 to 1, corner and size": lambda share, size: [
        round(value, 3) for value in (*share[:2], share[2] - share[0], share[3] - share[1])
    ],
}
NOTATIONS = {
    "qwen2_5_vl": '[{{"bbox_2d": [{}], "label": "x"}}]',
    "qwen3_vl": '```json\n[{{"bbox_2d": [{}]}}]\n```',
    "internvl": "x[[{}]]",
    "llava_onevision": "[{}]",
}
"""Family, frame and notation by name."""


def answering(name, frame):
    """An engine that sees the object and says where it is in this frame, in the family's notation."""

    def answer(request):
        width, height = request.image.size
        share = [value / side for value, side in zip(seen_box_px(request), (width, height) * 2, strict=True)]
        numbers = FRAMES[frame](share, width)
        if width != height and frame == "pixels of the resized image":
            numbers = list(seen_box_px(request))
        return Answer(text=NOTATIONS[name].format(", ".join(map(str, numbers))), finish_reason="stop")

    return answer


def rescaled(convert):
    def answer(request):
        text = seen_box_answer(request).text
        numbers = [int(part) for part in text[text.index(": [") + 3 : text.index("]")].split(",")]
        return box_answer(tuple(int(round(value)) for value in convert(np.array(numbers, float))))

    return answer


def check(answer_of, config=SEEN):
    return run_canary(FakeEngine(answer_of), QWEN2_5_VL, RULES, config)


def test_scenes_hold_one_object_and_its_box():
    images, phrases, boxes = draw_canary(CanaryConfig(scenes=6), [replace(SQUARE, scale=2)])
    assert len(images) == len(phrases) == len(boxes) == 6 and images[0].size == (256, 256)
    assert ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_model_that_sees_passes():
    result = check(seen_box_answer)
    assert result.passed and result.mean_iou > 0.8 and result.with_box == 16 and result.hit_rate == 1.0


@pytest.mark.parametrize(
    ("frame", "convert"),
    [
        ("0 to 1000", lambda box: box / 112 * 1000),
        ("pixels of the resized image, y before x", lambda box: box[[1, 0, 3, 2]]),
        (
            "pixels of the resized image, corner and size",
            lambda box: np.concatenate([box[:2], box[2:] - box[:2]]),
        ),
    ],
)
def test_another_frame_is_refused_and_named(frame, convert):
    result = check(rescaled(convert))
    assert not result.passed and result.other_frame == frame
    with pytest.raises(DataError, match=f"another frame: {frame}"):
        check(rescaled(convert), CanaryConfig(mode="refuse"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_in_its_own_frame(name):
    family, rules = FAMILIES[name]
    result = run_canary(FakeEngine(answering(name, family.frame)), family, rules, SEEN)
    assert result.passed and result.mean_iou > 0.8 and result.other_frame is None
    assert result.frame == family.frame


@pytest.mark.parametrize(
    ("name", "frame"),
    [(name, frame) for name, (family, _) in FAMILIES.items() for frame in FRAMES if frame != family.frame],
)
def test_every_family_refuses_every_other_frame_and_names_it(name, frame):
    family, rules = FAMILIES[name]
    strict = CanaryConfig(mode="refuse")
    with pytest.raises(DataError, match=f"read as {family.frame}, .* another frame: {frame}; at least"):
        run_canary(FakeEngine(answering(name, frame)), family, rules, strict)


@pytest.mark.parametrize(
    ("name", "shapes"),
    {
        "qwen2_5_vl": ["square", "4:3", "3:4"],
        "qwen3_vl": ["square", "4:3", "3:4"],
        "internvl": ["square", "4:3", "3:4", TILED],
        "llava_onevision": ["square", TILED],
    }.items(),
)
def test_scenes_are_of_every_shape_that_the_model_sees(name, shapes):
    canvases = canvases_of(*ROOMY[name], scale=1)
    assert [canvas.name for canvas in canvases] == shapes
    family, rules = FAMILIES[name]
    assert canvases_of(family, rules, scale=1) == (SQUARE,)  # one size, or one tile, is all there is


def test_a_model_of_tiles_is_asked_about_several_of_them():
    family, rules = ROOMY["internvl"]
    seen = set()

    def answer(request):
        seen.add(request.image.size[::-1])
        return answering("internvl", family.frame)(request)

    assert run_canary(FakeEngine(answer), family, rules, SEEN).passed
    assert seen == {(448, 448), (1344, 1792), (1792, 1344), (896, 896)}


@pytest.mark.parametrize("canvas", [WIDE, TALL], ids=lambda canvas: canvas.name)
def test_boxes_are_shares_of_each_side(canvas):
    """What differs from the background of the drawn image is the box that is told of it."""
    images, _, boxes = draw_canary(CanaryConfig(scenes=4, scale=2), [replace(canvas, scale=2)])
    for image, box in zip(images, boxes, strict=True):
        assert image.size == (canvas.width * 2, canvas.height * 2)
        request = Request(image=image, expression="", num_image_tokens=0)
        found = np.array(seen_box_px(request)) / np.array([*image.size, *image.size])
        np.testing.assert_allclose(found, box, atol=0.05)


@pytest.mark.parametrize("name", ROOMY)
def test_every_family_passes_in_every_shape(name):
    family, rules = ROOMY[name]
    result = run_canary(FakeEngine(answering(name, family.frame)), family, rules, SEEN)
    assert result.passed and result.shape_iou > 0.8 and result.other_frame is None


def swapped(name, frame):
    """An engine that takes the height of an image for its width: right on squares alone."""

    def answer(request):
        width, height = request.image.size
        share = np.array(seen_box_px(request)) / [width, height, width, height]
        if frame == "pixels of the resized image":
            numbers = np.rint(share * [height, width, height, width]).astype(int)
        else:
            full = 1000 if frame == "0 to 1000" else 1
            numbers = np.round(
                share * [height, width, height, width] / [width, height, width, height] * full, 3
            )
        return Answer(text=NOTATIONS[name].format(", ".join(map(str, numbers))), finish_reason="stop")

    return answer


def padded(name, frame):
    """An engine that pads an image to a square, in its middle, and answers in the square."""

    def answer(request):
        width, height = request.image.size
        side = max(width, height)
        offset = np.array([side - width, side - height] * 2) / 2
        share = (np.array(seen_box_px(request)) + offset) / side
        full = {"pixels of the resized image": side, "0 to 1000": 1000}[frame]
        return Answer(
            text=NOTATIONS[name].format(", ".join(map(str, np.rint(share * full).astype(int)))),
            finish_reason="stop",
        )

    return answer


@pytest.mark.parametrize("fault", [swapped, padded])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_a_fault_that_leaves_squares_alone_is_refused(name, fault):
    family, rules = ROOMY[name]
    result = run_canary(FakeEngine(fault(name, family.frame)), family, rules, SEEN)
    assert not result.passed and result.shape in ("4:3", "3:4") and result.shape_iou < 0.6
    assert f"lowest in images of shape {result.shape}: {result.shape_iou:.2f}" in result.line()
    assert run_canary(FakeEngine(fault(name, family.frame)), *FAMILIES[name], SEEN).passed
    with pytest.raises(DataError, match="is required of every shape, so nothing is written"):
        run_canary(FakeEngine(fault(name, family.frame)), family, rules, CanaryConfig(mode="refuse"))


def test_a_shape_that_is_too_low_fails_by_itself():
    """No other frame explains it: the boxes of upright images are of somewhere else."""
    family, rules = ROOMY["qwen3_vl"]
    right = answering("qwen3_vl", family.frame)

    def answer(request):
        upright = request.image.height > request.image.width
        return Answer(text="[[1, 1, 400, 90]]", finish_reason="stop") if upright else right(request)

    result = run_canary(FakeEngine(answer), family, rules, SEEN)
    assert not result.passed and result.mean_iou > 0.5 and result.other_frame is None
    assert result.shape == "3:4" and result.shape_iou < 0.2


def test_frames_that_leave_squares_alone_are_named():
    for name, fault, frame in (
        ("qwen2_5_vl", swapped, "pixels of the resized image, height and width swapped"),
        ("qwen2_5_vl", padded, "pixels of the resized image, the image padded to a square around it"),
        ("internvl", padded, "0 to 1000, the image padded to a square around it"),
    ):
        family, rules = ROOMY[name]
        assert run_canary(FakeEngine(fault(name, family.frame)), family, rules, SEEN).other_frame == frame


def test_a_frame_that_nearly_fits_is_refused_too():
    """Pixels of 128 read as pixels of 112: the boxes overlap with the true ones by enough, and are still wrong."""
    lenient = CanaryConfig(mode="warn", min_mean_iou=0.25)
    answer_of = answering("qwen2_5_vl", "pixels of the image before resizing")
    result = run_canary(FakeEngine(answer_of), QWEN2_5_VL, RULES, lenient)
    assert result.mean_iou >= 0.25 and result.mean_iou > result.chance_iou + 0.2 and not result.passed


def test_a_frame_that_fits_by_chance_as_well_is_not_named():
    """Numbers between two frames, a little nearer to the other one: noise, and no reason to refuse a model."""
    truth_N4 = np.array([[0.0, 0.0, 0.9, 0.9], [0.0, 0.0, 0.5, 0.8]])
    raw_N4 = truth_N4 * 116
    seen, given = np.full((2, 2), 112), np.full((2, 2), 119)
    own, other = (box_iou(raw_N4 / side, truth_N4).mean() for side in (112, 119))
    assert own < other < own + FRAME_MARGIN
    assert fitting_frame(raw_N4, truth_N4, seen, given, QWEN2_5_VL, 0.5) is None
    far, far_N4 = np.array([[100, 160]] * 2), truth_N4 * np.array([160, 100, 160, 100])
    assert fitting_frame(far_N4, truth_N4, seen, far, QWEN2_5_VL, 0.5) == PIXELS_BEFORE


def test_corners_in_another_order_are_no_other_frame():
    result = check(rescaled(lambda box: box[[2, 3, 0, 1]]))
    assert result.passed and result.other_frame is None


def test_boxes_by_chance_are_refused():
    result = check(random_box_answer)
    assert not result.passed and result.other_frame is None
    with pytest.raises(DataError, match="nothing is written"):
        check(random_box_answer, CanaryConfig(mode="refuse"))


def test_always_the_same_large_box_is_chance():
    result = check(lambda request: box_answer((5, 5, 107, 107)), CanaryConfig(mode="warn", min_mean_iou=0.05))
    assert not result.passed and result.mean_iou == pytest.approx(result.chance_iou)


def test_no_boxes_at_all():
    result = check(lambda request: Answer(text="no", num_tokens=1))
    assert (result.passed, result.mean_iou, result.with_box) == (False, 0.0, 0)


def test_questions_that_all_failed_are_no_matter_of_boxes():
    with pytest.raises(
        DataError, match="none of 16 drawn scenes could be asked about.*: ValueError: no template"
    ):
        check(lambda request: failed_answer(ValueError("no template")), CanaryConfig(mode="refuse"))
    assert check(lambda request: failed_answer(ValueError("no")), CanaryConfig(mode="warn")).passed is False


def test_refused_runs_write_nothing_and_warned_runs_keep_the_result(config, capsys):
    strict = apply_overrides(config, ["canary.mode=refuse"])
    with pytest.raises(DataError, match="canary"):
        run_priors(strict, engine_factory=FakeEngine().factory, quiet=True)
    assert not describe_plan(strict)["exists"]
    lenient = apply_overrides(config, ["canary.mode=warn"])
    path = run_priors(lenient, engine_factory=FakeEngine().factory)
    assert "going on" in capsys.readouterr().err
    kept = PriorStore(path).attrs["canary"]
    assert (kept["mode"], kept["passed"], kept["scenes"]) == ("warn", False, 16)


def test_skipped_checks_say_so(config):
    path = run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    assert PriorStore(path).attrs["canary"]["passed"] is None
    told = store_status(path)["canary"]
    assert (told["mode"], told["passed"], told["scenes"]) == ("skip", None, 0)
