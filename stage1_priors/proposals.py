"""Boxes and edge distributions -> soft masks over the whole image. Pure numpy, batched.

Legend: B rows, G side of the map, V positions 0..extent of the answer frame. Maps cover the whole original image in
its normalised frame; pixel (i, j) has its centre at ((j + 0.5) / G, (i + 0.5) / G).

A row without a usable box gets the constant map `NO_PRIOR`: no information, and below one half, so that no pixel
counts as foreground. Zeros would claim certain background. Readers should treat such rows as having no prior, by
their status.

A thing smaller than a cell can lie so that no cell reaches one half: its map would say that there is certainly nothing,
and its pixels would be taught as background. Such a map is scaled until its largest cell is 1 (`fill_small`).
"""

from collections.abc import Callable, Sequence

import numpy as np

from stage1_priors.config import ProposerConfig

NO_PRIOR = 127
"""u8 value (0.498) of every pixel of a row without a usable box."""

PROPOSER_VERSION = "3"
"""Changes whenever the same answer could get another map; part of the store's fingerprint."""
SMALL_CELLS = 2
"""A box narrower or lower than so many cells may hold no whole cell."""
MIN_PEAK = 1e-6
"""Below this the largest cell of a soft box is what is left of rounding."""
_BLOCK_ROWS = 64
"""Rows worked on together: bounds the memory of the [B, G, V] intermediate."""

Edges = tuple[np.ndarray, ...]
"""Distributions of x1, y1, x2, y2 over the integer positions of the answer frame, float64 [V] each."""


def propose(box_norm_B4: np.ndarray, edges_B: Sequence[Edges | None], config: ProposerConfig) -> np.ndarray:
    """Soft masks of a batch of boxes.

    Args:
        box_norm_B4: float32 [B, 4], x1 y1 x2 y2 in the normalised frame; NaN rows have no box.
        edges_B: Edge distributions per row; None where the model gave none.
        config: Kind and widths.

    Returns:
        uint8 [B, G, G], round(255 x probability); `NO_PRIOR` throughout for NaN rows.
    """
    box_norm_B4 = np.asarray(box_norm_B4, np.float64).reshape(-1, 4)
    map_BGG = np.full((len(box_norm_B4), config.grid, config.grid), NO_PRIOR, np.uint8)
    rows = np.flatnonzero(np.isfinite(box_norm_B4).all(axis=1))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        boxes = box_norm_B4[block]
        prob_BGG = BOX_MAPS[config.kind](boxes, [edges_B[row] for row in block], config)
        shorter_side_B = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        prob_BGG = fill_small(prob_BGG, shorter_side_B * config.grid < SMALL_CELLS)
        map_BGG[block] = np.rint(prob_BGG * 255).astype(np.uint8)
    return map_BGG


def fill_small(prob_NGG: np.ndarray, small_N: np.ndarray) -> np.ndarray:
    """Maps of small things with a cell that counts as inside: the thing fills the cell that holds most of it.

    Args:
        prob_NGG: float [N, G, G] in [0, 1].
        small_N: bool [N], the maps that may be scaled.

    Returns:
        The same, and where all cells of such a map are below one half, divided by the largest of them; a map of zeros
        stays.
    """
    peak_N = prob_NGG.max(axis=(1, 2))
    scaled_N = small_N & (peak_N > 0) & (peak_N < 0.5)
    return prob_NGG / np.where(scaled_N, peak_N, peak_N.dtype.type(1))[:, None, None]


def hard_box(box_norm_B4: np.ndarray, edges_B: Sequence[Edges | None], config: ProposerConfig) -> np.ndarray:
    """Share of each cell that the box covers: float64 [B, G, G], of a box of whole cells 1 and 0. No use of edges."""
    border = np.arange(config.grid + 1) / config.grid
    x1, y1, x2, y2 = (box_norm_B4[:, k, None] for k in range(4))
    across_BG, down_BG = (
        np.clip((np.minimum(high, border[1:]) - np.maximum(low, border[:-1])) * config.grid, 0, 1)
        for low, high in ((x1, x2), (y1, y2))
    )
    return down_BG[:, :, None] * across_BG[:, None, :]


def soft_box(box_norm_B4: np.ndarray, edges_B: Sequence[Edges | None], config: ProposerConfig) -> np.ndarray:
    """Probability that a pixel lies inside the box, from what is known about its edges.

    p(u) = P(x1 <= u_x) P(x2 >= u_x) P(y1 <= u_y) P(y2 >= u_y), edges taken as independent. Each edge is its
    distribution smoothed by a logistic kernel, P(x1 <= t) = sum_v P(v) sigmoid((t - v) / width); without a
    distribution it is a logistic edge at the answered coordinate. A box so small that this vanishes at all centres is a
    hard one.

    Args:
        box_norm_B4: float64 [B, 4], finite.
        edges_B: Edge distributions per row or None.
        config: `smoothing`, `softness` and `max_share` are shares of the image side (of the box side).

    Returns:
        float64 [B, G, G] in [0, 1].
    """
    num_rows = len(box_norm_B4)
    side_B2 = box_norm_B4[:, 2:] - box_norm_B4[:, :2]
    wanted_B = np.array([config.softness if edges is None else config.smoothing for edges in edges_B])
    width_B2 = np.maximum(np.minimum(wanted_B[:, None], config.max_share * side_B2), 1e-6)
    cdf_B4G = np.empty((num_rows, 4, config.grid))
    groups: dict[tuple[int, int], list[int]] = {}
    for row, edges in enumerate(edges_B):
        groups.setdefault((0, 0) if edges is None else (len(edges[0]), len(edges[1])), []).append(row)
    for sizes, members in groups.items():
        rows = np.array(members)
        for k in range(4):
            axis = k % 2
            if sizes == (0, 0):
                value_BV, prob_BV = box_norm_B4[rows, k, None], np.ones((len(rows), 1))
            else:
                extent = sizes[axis] - 1
                value_BV = np.broadcast_to(np.arange(extent + 1) / extent, (len(rows), extent + 1))
                prob_BV = np.stack([edges[k] for row in members if (edges := edges_B[row]) is not None])
            cdf_B4G[rows, k] = _smooth_cdf(value_BV, prob_BV, width_B2[rows, axis], config.grid)
    inside_x_BG = cdf_B4G[:, 0] * (1 - cdf_B4G[:, 2])
    inside_y_BG = cdf_B4G[:, 1] * (1 - cdf_B4G[:, 3])
    prob_BGG = inside_y_BG[:, :, None] * inside_x_BG[:, None, :]
    gone_B = prob_BGG.max(axis=(1, 2)) < MIN_PEAK
    prob_BGG[gone_B] = hard_box(box_norm_B4[gone_B], (), config)
    return prob_BGG


def _smooth_cdf(value_BV: np.ndarray, prob_BV: np.ndarray, width_B: np.ndarray, grid: int) -> np.ndarray:
    """P(edge <= pixel centre) per row: float64 [B, G]. Positions of no probability are left out."""
    used_V = (prob_BV > 0).any(axis=0)
    value_BV, prob_BV = value_BV[:, used_V], prob_BV[:, used_V]
    argument_BGV = (pixel_centres(grid)[None, :, None] - value_BV[:, None, :]) / width_B[:, None, None]
    sigmoid_BGV = 0.5 * (1 + np.tanh(0.5 * argument_BGV))
    return np.einsum("bgv,bv->bg", sigmoid_BGV, prob_BV)


def pixel_centres(grid: int) -> np.ndarray:
    """(i + 0.5) / grid: float64 [G]."""
    return (np.arange(grid) + 0.5) / grid


BOX_MAPS: dict[str, Callable[[np.ndarray, Sequence[Edges | None], ProposerConfig], np.ndarray]] = {
    "soft-box": soft_box,
    "box": hard_box,
}
"""Map of a box by `proposer.kind`: (boxes [B, 4], edges, config) -> float64 [B, G, G] in [0, 1]."""
