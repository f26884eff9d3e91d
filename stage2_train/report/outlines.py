"""A boolean mask as an SVG path along its pixel edges, so that the page can colour, hatch and dash it.

Frame: pixel corners of the mask, x to the right, y down; pixel (row i, column j) covers [j, j+1] x [i, i+1].
"""

import numpy as np

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def mask_path(mask_HW: np.ndarray) -> str:
    """The outline of `mask_HW`.

    Args:
        mask_HW: bool [H, W].

    Returns:
        An SVG path of horizontal and vertical moves; regions lie to the right of the direction of travel and holes
        run the other way round, so the even-odd and the non-zero rule fill the same pixels. Empty for an empty mask.
    """
    edges = _directed_edges(np.asarray(mask_HW, dtype=bool))
    parts = []
    while edges:
        start = next(iter(edges))
        parts.append(_loop_path(_trace(edges, start)))
    return "".join(parts)


def _directed_edges(mask_HW: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """Corner (x, y) -> directions of the boundary edges that leave it (index into `_STEPS`)."""
    padded = np.pad(mask_HW, 1)
    inside = padded[1:-1, 1:-1]
    edges: dict[tuple[int, int], list[int]] = {}
    # A pixel's top edge runs right, its right edge down, its bottom edge left, its left edge up.
    sides = (
        (inside & ~padded[:-2, 1:-1], 0, 0, 0),
        (inside & ~padded[1:-1, 2:], 1, 0, 1),
        (inside & ~padded[2:, 1:-1], 1, 1, 2),
        (inside & ~padded[1:-1, :-2], 0, 1, 3),
    )
    for open_HW, dx, dy, direction in sides:
        for y, x in zip(*np.nonzero(open_HW), strict=True):
            edges.setdefault((int(x) + dx, int(y) + dy), []).append(direction)
    return edges


def _trace(edges: dict[tuple[int, int], list[int]], start: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Follow edges from `start` back to it, removing them; runs of (x, y, direction), one per edge."""
    x, y = start
    heading: int | None = None
    loop = []
    while True:
        leaving = edges[x, y]
        # Where two regions touch at a corner, turn right first: each keeps its own loop.
        turn = {} if heading is None else {(heading + 1) % 4: 0, heading: 1, (heading + 3) % 4: 2}
        heading = min(leaving, key=lambda direction: turn.get(direction, 3))
        leaving.remove(heading)
        if not leaving:
            del edges[x, y]
        loop.append((x, y, heading))
        x, y = x + _STEPS[heading][0], y + _STEPS[heading][1]
        if (x, y) == start:
            return loop


def _loop_path(loop: list[tuple[int, int, int]]) -> str:
    """`M x y`, then one move for each straight run."""
    corners = [index for index in range(len(loop)) if loop[index][2] != loop[index - 1][2]]
    first = corners[0] if corners else 0
    loop = loop[first:] + loop[:first]
    path, run, previous = [f"M{loop[0][0]} {loop[0][1]}"], 0, loop[0][2]
    for _, _, direction in loop:
        if direction != previous:
            path.append(_move(previous, run))
            run, previous = 0, direction
        run += 1
    return "".join(path) + "z"


def _move(direction: int, length: int) -> str:
    dx, dy = _STEPS[direction]
    return f"h{dx * length}" if dy == 0 else f"v{dy * length}"
