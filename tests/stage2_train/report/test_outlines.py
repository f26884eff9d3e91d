"""Outlines: hand-drawn masks, and any mask against an independent fill by the even-odd rule."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stage2_train.report.outlines import mask_path


def fill(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Fill a path by the even-odd rule: a pixel is inside if an odd number of vertical edges lie to its left."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for loop in filter(None, path.split("z")):
        start, moves = re.match(r"M(\d+) (\d+)(.*)$", loop).groups()[:2], re.findall(r"([hv])(-?\d+)", loop)
        x, y = first = (int(start[0]), int(start[1]))
        for kind, length in [*moves, ("close", "0")]:
            nx, ny = (
                first
                if kind == "close"
                else (x + int(length) * (kind == "h"), y + int(length) * (kind == "v"))
            )
            assert nx == x or ny == y, "an edge is neither horizontal nor vertical"
            for row in range(min(y, ny), max(y, ny)):
                crossings[row, nx] += 1
            x, y = nx, ny
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


def test_one_pixel():
    assert mask_path(np.array([[False, True]])) == "M1 0h1v1h-1z"


def test_straight_runs_are_merged():
    assert mask_path(np.ones((3, 5), bool)) == "M0 0h5v3h-5z"


def test_empty_mask_has_no_path():
    assert mask_path(np.zeros((4, 4), bool)) == ""


def test_ring_has_two_loops():
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    path = mask_path(ring)
    assert path.count("M") == 2
    assert np.array_equal(fill(path, ring.shape), ring)


@settings(deadline=None, max_examples=150)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_filling_the_path_gives_the_mask_back(mask):
    assert np.array_equal(fill(mask_path(mask), mask.shape), mask)
