"""Outlines of the drawable shapes, as polygons around the origin.

Frame: x to the right, y down, unit circumscribed radius. Every outline is a closed polygon `float64 [P, 2]`; a ring
has a second outline, its hole.
"""

import numpy as np

ROUND_SHAPES: tuple[str, ...] = ("circle", "ring", "oval", "crescent", "heart")
"""The family whose members are the targets of testA."""

ANGULAR_SHAPES: tuple[str, ...] = (
    "square",
    "triangle",
    "star",
    "diamond",
    "cross",
    "pentagon",
)
"""The family whose members are the targets of testB."""

SHAPES: tuple[str, ...] = ROUND_SHAPES + ANGULAR_SHAPES

MAX_ROTATION_DEG = 20.0
"""Shapes turn by at most this, so that a square never becomes a diamond."""

_ARC = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)


def _regular(num_points: int, start_deg: float) -> np.ndarray:
    angles = np.deg2rad(start_deg) + np.arange(num_points) * 2 * np.pi / num_points
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle() -> np.ndarray:
    return np.stack([np.cos(_ARC), np.sin(_ARC)], axis=1)


def _star() -> np.ndarray:
    points = _regular(10, -90.0)
    points[1::2] *= 0.45
    return points


def _cross() -> np.ndarray:
    arm, width = 0.95, 0.33
    x = [
        -width,
        width,
        width,
        arm,
        arm,
        width,
        width,
        -width,
        -width,
        -arm,
        -arm,
        -width,
    ]
    y = [
        -arm,
        -arm,
        -width,
        -width,
        width,
        width,
        arm,
        arm,
        width,
        width,
        -width,
        -width,
    ]
    return np.stack([np.array(x), np.array(y)], axis=1)


def _heart() -> np.ndarray:
    x = 16 * np.sin(_ARC) ** 3
    y = -(13 * np.cos(_ARC) - 5 * np.cos(2 * _ARC) - 2 * np.cos(3 * _ARC) - np.cos(4 * _ARC))
    return np.stack([x, y], axis=1) / 17.0


def _crescent() -> np.ndarray:
    outer = np.linspace(np.deg2rad(50), np.deg2rad(310), 30)
    inner = np.linspace(np.deg2rad(285), np.deg2rad(75), 24)
    outside = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inside = np.stack([0.45 + 0.78 * np.cos(inner), 0.78 * np.sin(inner)], axis=1)
    return np.concatenate([outside, inside]) + np.array([0.15, 0.0])


_OUTLINES: dict[str, np.ndarray] = {
    "circle": _circle(),
    "ring": _circle(),
    "oval": _circle() * np.array([1.0, 0.56]),
    "crescent": _crescent(),
    "heart": _heart(),
    "square": _regular(4, 45.0),
    "triangle": _regular(3, -90.0),
    "star": _star(),
    "diamond": _regular(4, 0.0) * np.array([0.62, 1.0]),
    "cross": _cross(),
    "pentagon": _regular(5, -90.0),
}

RING_HOLE = 0.52
"""Radius of a ring's hole over its outer radius."""


def outline_xy_px(
    shape: str, centre_xy_px: tuple[float, float], radius_px: float, angle_deg: float
) -> list[np.ndarray]:
    """Outlines of one placed shape.

    Args:
        shape: One of `SHAPES`.
        centre_xy_px: Centre in image pixels.
        radius_px: Circumscribed radius, pixels.
        angle_deg: Rotation, degrees clockwise on the screen.

    Returns:
        Polygons `[P, 2]` in image pixels: the outer outline, then the hole if the shape has one.
    """
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outer = _OUTLINES[shape] @ turn * radius_px + np.asarray(centre_xy_px)
    if shape != "ring":
        return [outer]
    return [
        outer,
        (outer - np.asarray(centre_xy_px)) * RING_HOLE + np.asarray(centre_xy_px),
    ]
