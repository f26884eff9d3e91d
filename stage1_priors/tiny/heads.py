"""Training-only heads and the losses. Nothing here is exported or served.

Qwen2.5-VL's vision tower knows no absolute position, so coordinates are slow to learn from answers alone. Three heads
shorten the way: what and where the object under each patch is (from the merged patches), where it is in the image
(from the image tokens after LM layer 2), and which patches are meant (from the last token of a question). They are
trained on boxes and attributes, never on masks.

Legend: B images, P = 64 patches, M = 16 image tokens with 4 patches each, Q questions, C channels, K objects.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from stage1_priors.tiny.data import ATTRIBUTES, Batch
from stage1_priors.tiny.model import GRID, MERGE, PATCH_PX, patch_rows_columns, text_states, vision_features
from stage1_priors.tiny.tokenizer import COORDINATE_OFFSETS, IMAGE_SIZE_PX

ABSOLUTE_LAYER = 2
"""LM layers before the absolute box is read from the image tokens."""
POINTER_LAYER = 3
"""LM layers before a question's last token points at patches."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses and the softness of coordinate targets."""

    other_tokens: float = 0.2
    """Weight of answer tokens that are not coordinates."""
    object_: float = 1.0
    """Weight of objectness per patch."""
    attributes: float = 0.5
    """Weight of shape, colour, pattern and size per patch (their mean)."""
    relative_box: float = 5.0
    """Weight of the box relative to its patch, L1 in image sides."""
    absolute_box: float = 5.0
    """Weight of the absolute box, L1 in image sides."""
    pointer: float = 0.5
    """Weight of pointing at the patches of the object meant."""
    sigma_start: float = 2.5
    """Standard deviation of coordinate targets at the start, px."""
    sigma_end: float = 0.7
    """The same at the end; geometric in between."""


class TrainingHeads(nn.Module):
    """The three heads."""

    def __init__(self, hidden: int) -> None:
        """Args: width of the model."""
        super().__init__()
        num_outputs = 1 + sum(map(len, ATTRIBUTES)) + 4
        per_token = MERGE**2
        self.dense_hidden = nn.Linear(hidden, 2 * hidden)
        self.embed_dense = nn.Linear(2 * hidden, per_token * num_outputs)
        self.absolute_hidden = nn.Linear(hidden, hidden)
        self.embed_absolute = nn.Linear(hidden, per_token * 4)
        self.pointer_key = nn.Linear(hidden, per_token * hidden // 2)
        self.pointer_query = nn.Linear(hidden, hidden // 2)

    def dense(self, image_BMC: torch.Tensor) -> torch.Tensor:
        """Objectness, attribute logits and relative box of each patch, float [B, P, 1 + attributes + 4]."""
        x = F.gelu(self.dense_hidden(F.rms_norm(image_BMC, image_BMC.shape[-1:])))
        return self.embed_dense(x).view(len(x), GRID * GRID, -1)

    def absolute(self, state_BMC: torch.Tensor) -> torch.Tensor:
        """Absolute box of the object under each patch in image sides, float [B, P, 4]."""
        x = F.gelu(self.absolute_hidden(F.rms_norm(state_BMC, state_BMC.shape[-1:])))
        return self.embed_absolute(x).view(len(x), GRID * GRID, 4) + 0.5

    def pointer(self, state_BMC: torch.Tensor, query_QC: torch.Tensor, row_Q: torch.Tensor) -> torch.Tensor:
        """Logits over the patches for each question, float [Q, P]."""
        key = self.pointer_key(F.rms_norm(state_BMC, state_BMC.shape[-1:])).view(
            len(state_BMC), GRID * GRID, -1
        )
        query = self.pointer_query(F.rms_norm(query_QC, query_QC.shape[-1:]))
        return torch.einsum("qpc,qc->qp", key[row_Q], query) / math.sqrt(query.shape[-1])


def patch_centres_px() -> torch.Tensor:
    """(x, y) of each patch's centre in `patchify`'s order, float [P, 2]."""
    return (patch_rows_columns().flip(1) + 0.5) * PATCH_PX


def assign_patches(boxes_BK4: torch.Tensor, num_objects_B: torch.Tensor) -> torch.Tensor:
    """The object under each patch: of the boxes that hold the patch's centre, the one centred nearest (relatively).

    Args:
        boxes_BK4: float, px.
        num_objects_B: int64, how many of them are real.

    Returns:
        int64 [B, P], object index, -1 where no box holds the centre.
    """
    centre_P2 = patch_centres_px()
    low, high = boxes_BK4[..., None, :2], boxes_BK4[..., None, 2:]
    half = (high - low) / 2
    offset_BKP = ((centre_P2 - (low + high) / 2) / half.clamp_min(1e-3)).abs().amax(-1)
    real_BK1 = (torch.arange(boxes_BK4.shape[1]) < num_objects_B[:, None])[..., None]
    offset_BKP = offset_BKP.masked_fill(~real_BK1, torch.inf)
    nearest_BP, index_BP = offset_BKP.min(dim=1)
    return torch.where(nearest_BP <= 1, index_BP, -1)


def soft_coordinates(value_N: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian targets over the numbers 0..112.

    Args:
        value_N: float, true coordinates, px.
        sigma: Standard deviation, px.

    Returns:
        float [N, 113], rows sum to 1.
    """
    numbers = torch.arange(IMAGE_SIZE_PX + 1)
    return torch.softmax(-((numbers - value_N[:, None]) ** 2) / (2 * sigma**2), dim=-1)


def losses(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: TrainingHeads,
    batch: Batch,
    number_ids: torch.Tensor,
    sigma: float,
    config: LossConfig,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a batch.

    Args:
        model: The model.
        heads: The training-only heads.
        batch: Scenes with questions and answers.
        number_ids: int64 [113], token of each number.
        sigma: Standard deviation of coordinate targets, px.
        config: Weights.

    Returns:
        The loss and its parts, detached.
    """
    image_BMC = vision_features(model, batch.pixel_B3HW)
    states = text_states(model, batch.rows, image_BMC)
    row_Q, start_Q = batch.answer_Q2.unbind(1)
    parts = _answer_losses(model, states[-1], batch, number_ids, sigma)
    target_BP = assign_patches(batch.boxes_BK4, batch.num_objects_B)
    parts |= _dense_losses(heads.dense(image_BMC), batch, target_BP)
    is_image_BL = batch.rows.token_BL == model.config.image_token_id
    located_BMC = states[ABSOLUTE_LAYER - 1][is_image_BL].view_as(image_BMC)
    real_BP = target_BP >= 0
    boxes_BP4 = _of_patches(batch.boxes_BK4, target_BP) / IMAGE_SIZE_PX
    parts["absolute_box"] = F.l1_loss(heads.absolute(located_BMC)[real_BP], boxes_BP4[real_BP])
    pointer_QP = heads.pointer(located_BMC, states[POINTER_LAYER - 1][row_Q, start_Q - 1], row_Q)
    same_QP = (_of_patches(batch.boxes_BK4, target_BP)[row_Q] == batch.box_Q4[:, None]).all(-1) & real_BP[
        row_Q
    ]
    some_Q = same_QP.any(1)
    share_QP = same_QP.float() / same_QP.sum(1, keepdim=True).clamp_min(1)
    parts["pointer"] = F.cross_entropy(pointer_QP[some_Q], share_QP[some_Q])
    weights = {
        "coordinates": 1.0,
        "other_tokens": config.other_tokens,
        "object": config.object_,
        "attributes": config.attributes,
        "relative_box": config.relative_box,
        "absolute_box": config.absolute_box,
        "pointer": config.pointer,
    }
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return total, {name: float(value.detach()) for name, value in parts.items()}


def _answer_losses(
    model: Qwen2_5_VLForConditionalGeneration,
    state_BLC: torch.Tensor,
    batch: Batch,
    number_ids: torch.Tensor,
    sigma: float,
) -> dict[str, torch.Tensor]:
    """Cross-entropy of the coordinates against soft targets, and of the other answer tokens."""
    row_Q, start_Q = batch.answer_Q2.unbind(1)
    num_tokens = batch.answer_QA.shape[1]
    before_QA = start_Q[:, None] + torch.arange(num_tokens) - 1
    log_prob_QAV = model.lm_head(state_BLC[row_Q[:, None], before_QA]).log_softmax(-1)
    is_coordinate = torch.zeros(num_tokens, dtype=torch.bool)
    is_coordinate[list(COORDINATE_OFFSETS)] = True
    soft = soft_coordinates(batch.box_Q4.flatten(), sigma)
    coordinates = -(log_prob_QAV[:, is_coordinate][..., number_ids].flatten(0, 1) * soft).sum(-1).mean()
    other = F.nll_loss(
        log_prob_QAV[:, ~is_coordinate].flatten(0, 1), batch.answer_QA[:, ~is_coordinate].flatten()
    )
    return {"coordinates": coordinates, "other_tokens": other}


def _dense_losses(output_BPD: torch.Tensor, batch: Batch, target_BP: torch.Tensor) -> dict[str, torch.Tensor]:
    """Objectness, attributes and relative boxes of the patches."""
    real_BP = target_BP >= 0
    objectness = F.binary_cross_entropy_with_logits(output_BPD[..., 0], real_BP.float())
    sizes = list(map(len, ATTRIBUTES))
    *logits, box_N4 = output_BPD[..., 1:][real_BP].split([*sizes, 4], dim=-1)
    names_N4 = _of_patches(batch.attributes_BK4, target_BP)[real_BP]
    attributes = torch.stack(
        [F.cross_entropy(logit, names_N4[:, i]) for i, logit in enumerate(logits)]
    ).mean()
    centre_P4 = patch_centres_px().repeat(1, 2)
    relative_N4 = ((_of_patches(batch.boxes_BK4, target_BP) - centre_P4) / IMAGE_SIZE_PX)[real_BP]
    return {"object": objectness, "attributes": attributes, "relative_box": F.l1_loss(box_N4, relative_N4)}


def _of_patches(values_BKD: torch.Tensor, target_BP: torch.Tensor) -> torch.Tensor:
    """Values of the object under each patch (the first object's where there is none), [B, P, D]."""
    index = target_BP.clamp_min(0)[..., None].expand(-1, -1, values_BKD.shape[-1])
    return values_BKD.gather(1, index)
