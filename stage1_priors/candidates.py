"""Masks of whatever there is in an image, for SemiRES: SAM's everything mode. Pure numpy; `sam.py` asks the model.

A grid of prompts over the image gives many masks. Those that the model expects to be good, and that hardly change when
the threshold does, are taken from best to worst, each unless it repeats one that was taken before.

Best is, as published, the mask of the highest expected IoU. Prompted by boxes that fit nothing, a model that was
trained on boxes that fit expects the same of every mask; there (ours) the score is the number of masks that are the
same, times the mean probability inside: what is a thing is found from many sides.

Legend: P prompts, N masks of an image, M masks kept, G side of the stored candidates.
"""

import numpy as np

from stage1_priors.config import CandidatesConfig

CANDIDATES_VERSION = "1"
"""Changes whenever the same model could give other candidates; part of the store's fingerprint."""
HALF = 128
"""Least stored value that counts as inside."""
DECIMALS = 3
"""Scores are rounded before they are compared, so that the last bits of a float seldom decide."""


def prompt_points(config: CandidatesConfig) -> np.ndarray:
    """Centres of a grid of cells, row by row: float64 [P, 2], x y in the normalised frame."""
    centre_S = (np.arange(config.points_per_side) + 0.5) / config.points_per_side
    x_SS, y_SS = np.meshgrid(centre_S, centre_S)
    return np.stack([x_SS.ravel(), y_SS.ravel()], 1)


def prompt_boxes(config: CandidatesConfig) -> np.ndarray:
    """A square of every size around every point, cut at the frame: float64 [P, 4], x1 y1 x2 y2, normalised."""
    point_P2 = prompt_points(config)
    squares = [np.concatenate([point_P2 - side / 2, point_P2 + side / 2], 1) for side in config.box_sides]
    return np.clip(np.concatenate(squares), 0, 1)


def choose(soft_NGG: np.ndarray, iou_N: np.ndarray, config: CandidatesConfig) -> list[int]:
    """The masks to keep, best first; equals in the order of their prompts.

    Args:
        soft_NGG: uint8, probability x 255, masks that passed the thresholds.
        iou_N: IoU that the model expects of each.
        config: Rule, and how many to keep.

    Returns:
        At most `config.num` indices; no two of these masks have an IoU above `config.same_iou`, none is empty.
    """
    soft_NC = soft_NGG.reshape(len(soft_NGG), soft_NGG.shape[1] * soft_NGG.shape[2])
    mask_NC = (soft_NC >= HALF).astype(np.float32)
    area_N = mask_NC.sum(1)
    inter_NN = mask_NC @ mask_NC.T
    same_NN = inter_NN > config.same_iou * (area_N[:, None] + area_N - inter_NN)
    if config.prompts == "boxes":
        score_N = same_NN.sum(1) * (soft_NC / 255 * mask_NC).sum(1) / np.maximum(area_N, 1)
    else:
        score_N = iou_N
    kept: list[int] = []
    left_N = area_N > 0
    for index in np.argsort(-np.round(score_N, DECIMALS), kind="stable"):
        if len(kept) == config.num:
            break
        if left_N[index]:
            kept.append(int(index))
            left_N &= ~same_NN[index]
    return kept
