"""Structure-enhancing module: a prior field enters the visual stream at one stage (eq. 1-3).

Axes: B samples (here those that see a field), N = H_j W_j visual tokens, T word tokens, C channels of the stage, L
channels of the text.

    Eq. 1  M_j  = alpha_j sem(V_j, S) + beta_j geo_j(V_j, G_j)
    Eq. 2  geo_j = W G_j (operator P, pixel aligned)  or  attention(V_j; G_j, G_j) (operator A)
    Eq. 3  V'_j = V_j + sigmoid(W_g V_j) * M_j

`Sesm` returns the residual of eq. 3, because in LAVT it has two destinations: the stream that goes on, and the map
that the decoder reads. A sample that sees no field has none, semantic term included, so its pass is the plain network's
and costs no more.

The paper leaves the heads and output projections open; here one head and no output projection (the stage after it
mixes channels). With Swin-B and BERT-base that is 9.765M parameters, the paper's 9.353M: word attention 4.348M,
geometric operators 4.019M, gates 1.395M, lifts 0.004M.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_train.segmentor_config import SesmConfig
from stage2_train.transforms import resize_field


class Attention(nn.Module):
    """Single-head cross-attention without output projection."""

    def __init__(self, dim: int, source_dim: int) -> None:
        """Queries of `dim` channels, keys and values from `source_dim`."""
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(source_dim, dim)
        self.value = nn.Linear(source_dim, dim)

    def forward(self, visual_BNC: Tensor, source_BTL: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Attend from [B, N, C] to [B, T, L] where `mask_BT` is True; returns [B, N, C]."""
        return F.scaled_dot_product_attention(
            self.query(visual_BNC).unsqueeze(1),
            self.key(source_BTL).unsqueeze(1),
            self.value(source_BTL).unsqueeze(1),
            attn_mask=None if mask_BT is None else mask_BT[:, None, None, :],
        ).squeeze(1)


class Sesm(nn.Module):
    """The module of one stage."""

    def __init__(self, dim: int, text_dim: int, operator: str, config: SesmConfig) -> None:
        """Build for C = `dim`, L = `text_dim` and operator `P` or `A`."""
        super().__init__()
        self.operator = operator
        self.sem = Attention(dim, text_dim)
        self.lift = nn.Linear(1, dim)
        self.geo: nn.Module = nn.Linear(dim, dim) if operator == "P" else Attention(dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.alpha = nn.Parameter(torch.tensor(config.alpha_init))
        self.beta = nn.Parameter(torch.tensor(config.beta_init))

    def forward(
        self,
        visual_BNC: Tensor,
        text_BTL: Tensor,
        token_mask_BT: Tensor,
        field_B1HW: Tensor,
        grid_hw: tuple[int, int],
    ) -> Tensor:
        """Residual of eq. 3.

        Args:
            visual_BNC: V_j.
            text_BTL: S.
            token_mask_BT: bool, True at words.
            field_B1HW: Probability map in [0, 1] over the whole image, any resolution.
            grid_hw: (H_j, W_j).

        Returns:
            sigmoid(W_g V_j) * M_j, [B, N, C].
        """
        field_BN1 = resize_field(field_B1HW, grid_hw).flatten(2).transpose(1, 2)
        lifted_BNC = F.gelu(self.lift(2.0 * field_BN1 - 1.0))
        sem_BNC = self.sem(visual_BNC, text_BTL, token_mask_BT)
        geo_BNC = self.geo(lifted_BNC) if self.operator == "P" else self.geo(visual_BNC, lifted_BNC)
        return torch.sigmoid(self.gate(visual_BNC)) * (self.alpha * sem_BNC + self.beta * geo_BNC)
