"""What tokens say about a box, in each family's notation: texts as the families' tokenizers cut them."""

import math

import numpy as np
import pytest

from stage1_priors.answers import read_answers
from stage1_priors.config import ProposerConfig
from stage1_priors.edges import Token
from stage1_priors.engine import Answer
from stage1_priors.families import FAMILIES
from stage1_priors.proposals import propose
from tests.stage1_priors.families.random_models import INTERN, LLAVA, QWEN, build_tokenizer

SIZE_HW = (224, 448)
WRITTEN = {
    "qwen2_5_vl": (QWEN, '[{"bbox_2d": [112, 28, 224, 168], "label": "star"}]<|im_end|>'),
    "qwen3_vl": (QWEN, '[{"bbox_2d": [250, 125, 500, 750], "label": "star"}]<|im_end|>'),
    "internvl": (INTERN, "<ref>star</ref><box>[[250, 125, 500, 750]]</box><|im_end|>"),
    "llava_onevision": (LLAVA, "[0.250, 0.125, 0.500, 0.750]<|im_end|>"),
}
PROB = 0.8
"""Probability of the last digit of every number; the rest is on another digit."""


def answer_of(name, *, alternatives=True):
    """The answer as an engine returns it: special tokens are tokens, and no part of the text."""
    special, written = WRITTEN[name]
    tokenizer = build_tokenizer(special, "")
    ids = tokenizer.encode(written, add_special_tokens=False)
    pieces = [tokenizer.decode(token) for token in ids]
    tokens = []
    for piece, following in zip(pieces, [*pieces[1:], ""], strict=True):
        doubted = piece.isdecimal() and following in (",", "]")
        prob = PROB if doubted else 1.0
        others = ((str((int(piece) + 5) % 10), math.log(1 - PROB)),) if doubted else ()
        kept = ((piece, math.log(prob)), *others) if alternatives else ()
        tokens.append(Token(text=piece, logprob=math.log(prob), alternatives=kept))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Answer(text=text, tokens=tuple(tokens), num_tokens=len(ids), finish_reason="stop")


def rows_of(name, **options):
    return read_answers(
        [answer_of(name, **options)], np.array([SIZE_HW]), FAMILIES[name], clip_tolerance=0.02
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_edges_of_every_family(name):
    rows = rows_of(name)
    family = FAMILIES[name]
    np.testing.assert_allclose(rows.box_xyxy_norm_B4[0], [0.25, 0.125, 0.5, 0.75])
    extents = [round(family.answer_frame_hw(SIZE_HW)[axis] / family.unit) for axis in (1, 0, 1, 0)]
    for edge, (prob_V, extent) in enumerate(zip(rows.edges_B[0], extents, strict=True)):
        assert len(prob_V) == extent + 1 and np.count_nonzero(prob_V) == 2
        position = round(rows.box_xyxy_norm_B4[0, edge] * extent)
        other = position - position % 10 + (position + 5) % 10
        np.testing.assert_allclose(prob_V[[position, other]], [PROB, 1 - PROB])


@pytest.mark.parametrize(
    ("name", "num_tokens"), [("qwen2_5_vl", 11), ("qwen3_vl", 12), ("internvl", 12), ("llava_onevision", 20)]
)
def test_confidence_is_the_mean_over_coordinate_tokens(name, num_tokens):
    """Four of them are in doubt. The point before the decimals is a coordinate token, too."""
    mean = 4 * math.log(PROB) / num_tokens
    assert rows_of(name).confidence_B[0] == pytest.approx(mean, abs=1e-6)
    assert rows_of(name, alternatives=False).confidence_B[0] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("name", WRITTEN)
def test_without_alternatives_edges_are_logistic(name):
    rows = rows_of(name, alternatives=False)
    assert rows.edges_B == (None,)
    config = ProposerConfig(grid=32)
    np.testing.assert_array_equal(
        propose(rows.box_xyxy_norm_B4, rows.edges_B, config), propose(rows.box_xyxy_norm_B4, [None], config)
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_soft_masks_of_all_families_agree(name):
    """The same box with about the same doubt gives nearly the same mask in every notation."""
    config = ProposerConfig(grid=64)
    maps = [
        propose(rows.box_xyxy_norm_B4, rows.edges_B, config)[0] for rows in map(rows_of, (name, "qwen3_vl"))
    ]
    inside = [map_GG > 127 for map_GG in maps]
    assert inside[0].any() and (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum() > 0.9
