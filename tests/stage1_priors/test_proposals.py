"""Soft masks: what they must be in cases one can work out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1_priors.config import ProposerConfig
from stage1_priors.proposals import BOX_MAPS, NO_PRIOR, hard_box, propose

CONFIG = ProposerConfig(grid=32)


def point(*values, extent=100):
    edges = np.zeros((4, extent + 1))
    edges[np.arange(4), values] = 1
    return tuple(edges)


def test_a_hard_box_of_whole_cells_is_those_cells():
    box = np.array([[0.25, 0.5, 0.75, 1.0]], np.float32)
    prob = propose(box, [None], ProposerConfig(kind="box", grid=8))[0]
    want = np.zeros((8, 8), np.uint8)
    want[4:8, 2:6] = 255
    np.testing.assert_array_equal(prob, want)


def test_a_hard_box_holds_the_share_of_each_cell_that_it_covers():
    box = np.array([[0.5, 1.0, 3.25, 3.0]]) / 4
    prob = propose(box, [None], ProposerConfig(kind="box", grid=4))[0]
    row = [128, 255, 255, 64]
    np.testing.assert_array_equal(prob, [[0] * 4, row, row, [0] * 4])


def test_a_thing_smaller_than_a_cell_fills_the_one_that_holds_most_of_it():
    # Four fifths of its width and nine tenths of its height lie in cell (1, 2).
    box = np.array([[1.92, 1.64, 2.32, 2.04]]) / 4
    (prob,) = propose(box, [None], ProposerConfig(kind="box", grid=4))
    np.testing.assert_array_equal(prob, [[0] * 4, [0, 64, 255, 0], [0, 7, 28, 0], [0] * 4])


def test_a_small_thing_that_counts_as_inside_is_left_as_it_is():
    box = np.array([[1.0, 1.0, 1.75, 2.0]]) / 4
    (prob,) = propose(box, [None], ProposerConfig(kind="box", grid=4))
    np.testing.assert_array_equal(prob, [[0] * 4, [0, 191, 0, 0], [0] * 4, [0] * 4])


@pytest.mark.parametrize("kind", ["box", "soft-box"])
@settings(max_examples=200, deadline=None)
@given(
    side=st.floats(0.5, 40),
    aspect=st.floats(0.2, 5),
    x=st.floats(0, 600),
    y=st.floats(0, 600),
    spread=st.sampled_from([None, 0, 1, 3]),
)
def test_wherever_a_box_lies_the_cell_that_holds_most_of_it_is_inside(kind, side, aspect, x, y, spread):
    """Boxes of a pixel and more in an image of 640, whatever is known of their edges; a cell is 10 pixels wide."""
    corners = np.array([x, y, min(x + side * aspect, 640), min(y + side, 640)])
    box = corners[None] / 640
    edges = None if spread is None else doubted(np.rint(corners).astype(int), spread)
    (prob,) = propose(box, [edges], ProposerConfig(kind=kind, grid=64))
    share = hard_box(box, (), ProposerConfig(kind=kind, grid=64))[0]
    assert prob.max() >= 128
    if spread is None:
        assert prob[np.unravel_index(share.argmax(), share.shape)] >= 128


def doubted(corners, spread):
    """Edges of which every pixel as near as `spread` is as likely."""
    edges = np.zeros((4, 641))
    for edge, corner in zip(edges, corners, strict=True):
        edge[max(corner - spread, 0) : corner + spread + 1] = 1
    return tuple(edges / edges.sum(1, keepdims=True))


@pytest.mark.parametrize("kind", ["box", "soft-box"])
@given(st.floats(0, 0.6), st.floats(0, 0.6), st.floats(2 / 32, 0.4), st.floats(2 / 32, 0.4))
def test_a_box_that_holds_a_whole_cell_is_left_as_it_is(kind, x, y, width, height):
    config = ProposerConfig(kind=kind, grid=32)
    box = np.array([[x, y, x + width, y + height]])
    np.testing.assert_array_equal(
        propose(box, [None], config)[0], np.rint(BOX_MAPS[kind](box, [None], config)[0] * 255)
    )


def test_what_is_in_doubt_but_not_small_stays_in_doubt():
    edges = list(point(10, 10, 90, 90))
    edges[0], edges[2] = np.full(101, 1 / 101), np.full(101, 1 / 101)
    (prob,) = propose(np.array([[0.1, 0.1, 0.9, 0.9]]), [tuple(edges)], CONFIG)
    assert 50 < prob.max() < 128


def test_soft_box_at_one_half_is_the_box():
    box = np.array([[0.2, 0.3, 0.8, 0.9]], np.float32)
    for edges in (None, point(20, 30, 80, 90)):
        prob = propose(box, [edges], CONFIG)[0] / 255
        centre = (np.arange(32) + 0.5) / 32
        inside = ((centre > 0.23) & (centre < 0.77))[None] & ((centre > 0.33) & (centre < 0.87))[:, None]
        outside = ~(((centre > 0.17) & (centre < 0.83))[None] & ((centre > 0.27) & (centre < 0.93))[:, None])
        assert (prob[inside] > 0.5).all() and (prob[outside] < 0.5).all()
        assert prob[19, 16] > 0.99 and prob[0, 0] < 0.01


def test_small_boxes_keep_their_inside():
    box = np.array([[0.45, 0.45, 0.53, 0.53]], np.float32)
    prob = propose(box, [None], ProposerConfig(grid=64, softness=0.2))[0] / 255
    assert prob[31, 31] > 0.9


def test_uncertain_edge_is_a_ramp():
    # x1 is 20 or 40 with equal probability: between them the probability is one half
    edges = list(point(20, 10, 90, 90))
    edges[0] = np.zeros(101)
    edges[0][[20, 40]] = 0.5
    prob = propose(np.array([[0.2, 0.1, 0.9, 0.9]], np.float32), [tuple(edges)], CONFIG)[0] / 255
    row = prob[16]
    centre = (np.arange(32) + 0.5) / 32
    np.testing.assert_allclose(row[(centre > 0.24) & (centre < 0.36)], 0.5, atol=0.02)
    np.testing.assert_allclose(row[(centre > 0.45) & (centre < 0.85)], 1.0, atol=0.02)


def test_rows_without_a_box_say_nothing():
    boxes = np.array([[np.nan] * 4, [0.2, 0.3, 0.8, 0.9]], np.float32)
    maps = propose(boxes, [None, None], CONFIG)
    assert (maps[0] == NO_PRIOR).all() and NO_PRIOR / 255 < 0.5
    assert maps[1].max() > 200


def test_a_row_does_not_depend_on_its_batch():
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 0.5, (150, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(0.1, 0.5, (150, 2))], 1).astype(np.float32)
    edges = []
    for row in range(150):
        extent = (56, 112, 84)[row % 3]
        edges.append(None if row % 4 == 0 else tuple(generator.dirichlet(np.ones(extent + 1), 4)))
    together = propose(boxes, edges, CONFIG)
    alone = np.concatenate(
        [propose(boxes[row : row + 1], edges[row : row + 1], CONFIG) for row in range(150)]
    )
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_mirrored_box_gives_mirrored_map():
    box = np.array([[0.1, 0.2, 0.5, 0.7]], np.float32)
    mirrored = np.array([[0.5, 0.2, 0.9, 0.7]], np.float32)
    left, right = propose(box, [None], CONFIG)[0], propose(mirrored, [None], CONFIG)[0]
    assert np.abs(left[:, ::-1].astype(int) - right).max() <= 1


def test_no_boxes_at_all():
    assert propose(np.zeros((0, 4), np.float32), [], CONFIG).shape == (0, 32, 32)
