"""A family that writes boxes as PaliGemma does, `<loc0123>` four times and y first, is one file and a line."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store.reader import PriorStore
from shared.types import STATUS_BY_CODE
from shared.types import AnswerStatus as S
from stage1_priors.answers import read_answers
from stage1_priors.canary import run_canary
from stage1_priors.config import CanaryConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.edges import Token
from stage1_priors.engine import Answer
from stage1_priors.families import FAMILIES, Family, SizeRules
from stage1_priors.job import make_job
from stage1_priors.parse import Parser
from stage1_priors.run import run_priors
from stage1_priors.sampled_boxes import read_samples
from tests.stage1_priors.fake_engine import FakeEngine, seen_box_px

SIDE, STEPS = 224, 1024
LOC = re.compile(r"<loc(\d{4})>" * 4)


def find_locs(text):
    """The boxes of a text: `<loc0123>`, steps of a 1024th of each side."""
    return [
        (tuple(map(float, found.groups())), tuple(found.span(k) for k in (1, 2, 3, 4)))
        for found in LOC.finditer(text)
    ]


def size_rules(config, preprocessor, where):
    return SizeRules(
        factor=SIDE,
        min_pixels=SIDE**2,
        max_pixels=SIDE**2,
        processor_min_pixels=SIDE**2,
        processor_max_pixels=SIDE**2,
    )


PALI = Family(
    name="pali",
    question="detect {expression}",
    size_rules=size_rules,
    processed_size=lambda height, width, rules: (SIDE, SIDE),
    answer_frame_hw=lambda processed_hw: (STEPS, STEPS),
    frame="0 to 1024",
    parser=Parser(name="loc tokens", version="1", find=find_locs),
    order="yxyx",
    num_image_tokens=lambda processed_hw, rules: 256,
)
BOX = (0.25, 0.125, 0.5, 0.75)
WRITTEN = "<loc0128><loc0256><loc0768><loc0512>"


def read(text, finish="stop", family=PALI, tokens=()):
    answer = Answer(text=text, finish_reason=finish, num_tokens=1, tokens=tokens)
    return read_answers([answer], np.array([(SIDE, SIDE)]), family, clip_tolerance=0.02)


@pytest.mark.parametrize(
    ("text", "finish", "status", "box"),
    [
        (f"{WRITTEN} red star", "stop", S.OK, BOX),
        (f"{WRITTEN} red star ; <loc0000><loc0000><loc0100><loc0100> red star", "stop", S.MULTIPLE, BOX),
        ("<loc0768><loc0512><loc0128><loc0256> red star", "stop", S.OK, BOX),
        ("<loc0128><loc0256><loc0128><loc0512> red star", "stop", S.DEGENERATE, None),
        ("<loc0128><loc0256><loc9999><loc9999> red star", "stop", S.OUT_OF_RANGE, None),
        ("<loc0128><loc0256>", "length", S.TRUNCATED, None),
        ("red star", "stop", S.NO_BOX, None),
        ("[128, 256, 768, 512]", "stop", S.NO_BOX, None),
        ("", "stop", S.EMPTY, None),
    ],
)
def test_its_answers_become_boxes_and_reasons(text, finish, status, box):
    rows = read(text, finish)
    assert STATUS_BY_CODE[int(rows.status_B[0])] is status
    np.testing.assert_allclose(rows.box_xyxy_norm_B4[0], np.full(4, np.nan) if box is None else box)


def test_raw_numbers_and_edges_have_x_before_y():
    tokens = tuple(
        Token(
            text=piece, logprob=math.log(0.8), alternatives=((piece, math.log(0.8)), (other, math.log(0.2)))
        )
        for piece, other in zip(
            re.findall("<loc....>", WRITTEN),
            ("<loc0100>", "<loc0200>", "<loc0700>", "<loc0500>"),
            strict=True,
        )
    )
    rows = read(WRITTEN, tokens=tokens)
    assert rows.box_raw_xyxy_B4[0].tolist() == [256, 128, 512, 768]
    assert rows.confidence_B[0] == pytest.approx(math.log(0.8))
    for prob_V, answered, other in zip(
        rows.edges_B[0], (256, 128, 512, 768), (200, 100, 500, 700), strict=True
    ):
        np.testing.assert_allclose(prob_V[[answered, other]], [0.8, 0.2])


def test_sampled_boxes_are_read_alike():
    answer = Answer(text=WRITTEN, finish_reason="stop", num_tokens=1, samples=((WRITTEN, "stop"),) * 2)
    columns = read_samples([answer], np.array([(SIDE, SIDE)]), PALI, 2, 0.02)
    np.testing.assert_allclose(columns["sample_box_xyxy_norm"][0], [BOX, BOX])
    assert columns["sample_iou"][0] == pytest.approx(1)


def seeing(order):
    """An engine that sees the object and writes its box in this order."""

    def answer(request):
        numbers = [round(value / SIDE * (STEPS - 1)) for value in seen_box_px(request)]
        text = "".join(f"<loc{numbers[axis]:04d}>" for axis in order)
        return Answer(text=text, finish_reason="stop", num_tokens=4)

    return FakeEngine(answer)


def test_the_canary_knows_its_frame_and_order():
    rules = size_rules({}, {}, "")
    config = CanaryConfig(mode="refuse")
    result = run_canary(seeing((1, 0, 3, 2)), PALI, rules, config)
    assert result.passed and (result.frame, result.other_frame) == ("0 to 1024", None)
    with pytest.raises(
        DataError, match="read as 0 to 1024, .* another frame: 0 to 1024, x before y; at least"
    ):
        run_canary(seeing((0, 1, 2, 3)), PALI, rules, config)
    with pytest.raises(DataError, match="another frame: 0 to 1024, y before x; at least"):
        run_canary(seeing((1, 0, 3, 2)), replace(PALI, order="xyxy"), rules, config)


def test_a_store_is_filled_and_named_by_notation_and_order(config, monkeypatch):
    monkeypatch.setitem(FAMILIES, "qwen2_5_vl", PALI)
    config = apply_overrides(config, ["splits=val", "proposer.kind=box", "canary.mode=refuse"])
    store = PriorStore(run_priors(config, engine_factory=seeing((1, 0, 3, 2)).factory, quiet=True))
    assert store.attrs["fingerprint_fields"]["parser"]["notation"] == "loc tokens 1"
    assert store.status_counts()["ok"] > 0 and store.attrs["canary"]["passed"]
    for changes, named in (
        ({"parser": replace(PALI.parser, version="2")}, "parser.notation: "),
        ({"parser": replace(PALI.parser, name="other")}, "parser.notation: "),
        ({"order": "xyxy"}, "parser.order: "),
    ):
        monkeypatch.setitem(FAMILIES, "qwen2_5_vl", replace(PALI, **changes))
        assert make_job(config).path != store.path
        (line,) = describe_plan(config)["changed"]
        assert line.startswith(named)
