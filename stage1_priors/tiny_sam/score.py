"""Losses and the held-out score of the embedded mask proposer.

Legend: B scenes, K boxes of a scene, J masks proposed per box, M side of the mask logits, S side of the image.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Sam2Model, Sam2Processor

from stage1_priors.tiny_sam.data import Batch, collate, draw_boxed, filled_boxes
from stage1_priors.tiny_sam.model import IMAGE_SIZE_PX, MASK_SIZE

HELD_OUT = "sam-heldout"
"""Stream of the held-out scenes."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean IoU with the true masks at 128 x 128; every share is in [0, 1]."""

    num: int
    """Boxes of each kind."""
    tight: float
    """Masks proposed for tight boxes."""
    jittered: float
    """Masks proposed for jittered boxes."""
    tight_box: float
    """The tight boxes themselves, filled: the baseline."""
    jittered_box: float
    """The jittered boxes themselves, filled."""
    predicted_error: float
    """Mean absolute error of the predicted IoU, over both kinds."""


def mask_losses(
    logit_BKJMM: torch.Tensor, predicted_BKJ: torch.Tensor, target_BKMM: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of proposed masks: cross-entropy plus Dice of the best of the J masks, and the error of every predicted IoU.

    Args:
        logit_BKJMM: Mask logits.
        predicted_BKJ: Predicted IoU of each mask.
        target_BKMM: Share of each cell that the object covers.

    Returns:
        The sum, and its parts `ce`, `dice` (of the best mask) and `iou` (squared error against the IoU at 0.5).
    """
    target = target_BKMM[:, :, None].expand_as(logit_BKJMM)
    # Cells near an object carry the decision and are few: weigh the cells by the inverse of the object's area.
    weight = 1 + 0.05 * target[0, 0, 0].numel() / (target.sum((-2, -1), keepdim=True) + 8) * target
    ce_BKJ = (F.binary_cross_entropy_with_logits(logit_BKJMM, target, reduction="none") * weight).mean(
        (-2, -1)
    )
    prob = logit_BKJMM.sigmoid()
    overlap = 2 * (prob * target).sum((-2, -1)) + 1
    dice_BKJ = 1 - overlap / (prob.square().sum((-2, -1)) + target.square().sum((-2, -1)) + 1)
    best_BK1 = (ce_BKJ + dice_BKJ).argmin(-1, keepdim=True)
    with torch.no_grad():
        hard, truth = logit_BKJMM > 0, target >= 0.5
        iou_BKJ = (hard & truth).sum((-2, -1)) / (hard | truth).sum((-2, -1)).clamp(min=1)
    parts = {
        "ce": ce_BKJ.gather(-1, best_BK1).mean(),
        "dice": dice_BKJ.gather(-1, best_BK1).mean(),
        "iou": (predicted_BKJ - iou_BKJ).square().mean(),
    }
    return 4 * parts["ce"] + parts["dice"] + parts["iou"], parts


def forward(model: Sam2Model, batch: Batch, multimask: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask logits [B, K, J, M, M] and predicted IoU [B, K, J]; J is 1 or, with `multimask`, 3."""
    output = model(pixel_values=batch.pixel_B3SS, input_boxes=batch.box_BK4, multimask_output=multimask)
    return output.pred_masks, output.iou_scores


def forward_blind(
    model: Sam2Model, box_1K4: torch.Tensor, multimask: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for boxes on an image whose features are all zero; the image encoder does not run."""
    width = model.config.mask_decoder_config.hidden_size
    shapes = ((width // 8, MASK_SIZE), (width // 4, MASK_SIZE // 2), (width, MASK_SIZE // 4))
    blank = [torch.zeros(1, channels, side, side) for channels, side in shapes]
    output = model(image_embeddings=blank, input_boxes=box_1K4, multimask_output=multimask)
    return output.pred_masks, output.iou_scores


@torch.no_grad()
def held_out_score(
    model: Sam2Model, processor: Sam2Processor, num_scenes: int, seed: int = 0, num_boxes: int = 4
) -> Score:
    """Score the single-mask output on the first held-out scenes, once with tight and once with jittered boxes."""
    training = model.training
    model.eval()
    iou: dict[str, list[np.ndarray]] = {"tight": [], "jittered": [], "tight_box": [], "jittered_box": []}
    errors = []
    for kind, share in (("tight", 0.0), ("jittered", 1.0)):
        for start in range(0, num_scenes, 20):
            indices = range(start, min(start + 20, num_scenes))
            scenes = [draw_boxed(HELD_OUT, seed, index, num_boxes, share) for index in indices]
            logit, predicted = forward(model, collate(scenes, processor), multimask=False)
            size = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
            prob = F.interpolate(logit.flatten(0, 1).sigmoid(), size, mode="bilinear").squeeze(1)
            found_PSS = (prob >= 0.5).numpy()
            truth_PSS = np.concatenate([scene.masks_KSS for scene in scenes])
            iou[kind].append(_iou(found_PSS, truth_PSS))
            box_P4 = np.concatenate([scene.boxes_K4 for scene in scenes])
            iou[f"{kind}_box"].append(_iou(filled_boxes(box_P4, IMAGE_SIZE_PX), truth_PSS))
            errors.append(np.abs(predicted.flatten().numpy() - iou[kind][-1]))
    model.train(training)
    means = {kind: round(float(np.concatenate(values).mean()), 4) for kind, values in iou.items()}
    error = round(float(np.concatenate(errors).mean()), 4)
    return Score(num=num_scenes * num_boxes, predicted_error=error, **means)


def _iou(found_PSS: np.ndarray, truth_PSS: np.ndarray) -> np.ndarray:
    inter, union = (found_PSS & truth_PSS).sum((1, 2)), (found_PSS | truth_PSS).sum((1, 2))
    return inter / np.maximum(union, 1)
