"""Pixel-word attention and the language gate of LAVT, one of each after every vision stage.

Axes: B samples, N visual tokens (row-major), T word tokens, C channels of the stage, L channels of the text.
One attention head, as in LAVT. All maps are per token, so linear layers stand where LAVT writes 1x1 convolutions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _wide(x: Tensor) -> Tensor:
    """In float32 where it is in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def instance_norm(x_BNC: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over the N positions of each sample and channel (no affine parameters).

    Computed in float32 or finer whatever comes in, which autocast would not see to.
    """
    wide_BNC = _wide(x_BNC)
    # Two means: `torch.var_mean` over an axis that is not the last takes many times as long on a CPU.
    centred_BNC = wide_BNC - wide_BNC.mean(dim=1, keepdim=True)
    scale_B1C = torch.rsqrt(centred_BNC.square().mean(dim=1, keepdim=True) + eps)
    return (centred_BNC * scale_B1C).to(x_BNC.dtype)


def channel_norm(x_BNC: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over the C channels of each token (no affine parameters)."""
    return F.layer_norm(x_BNC, x_BNC.shape[-1:], eps=eps)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {"instance": instance_norm, "channel": channel_norm}
"""`instance` is LAVT's. It removes whatever the sentence says to all pixels alike; `channel` keeps it."""


def _less_their_mean(value_BTC: Tensor, token_mask_BT: Tensor) -> Tensor:
    """Words less their mean over the sentence.

    What all words share is the same at every pixel, since a pixel's weights sum to one, so that an instance norm over
    the pixels takes it out again. Little is left of words that are much alike; in bfloat16 that little would be lost
    beside what they share.
    """
    wide_BTC, is_word_BT1 = _wide(value_BTC), token_mask_BT.unsqueeze(-1)
    mean_B1C = (wide_BTC * is_word_BT1).sum(dim=1, keepdim=True) / is_word_BT1.sum(dim=1, keepdim=True)
    return (wide_BTC - mean_B1C).to(value_BTC.dtype)


class PixelWordAttention(nn.Module):
    """F = GELU(W_m (GELU(W_v V) * norm(W_o A))), A the words each pixel attends to."""

    def __init__(self, dim: int, text_dim: int, dropout: float = 0.0, norm: str = "instance") -> None:
        """Build for C = `dim`, L = `text_dim` and a norm out of `NORMS` for queries and attended words."""
        super().__init__()
        self.norm = NORMS[norm]
        self.centres_words = norm == "instance"
        self.visual = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(text_dim, dim)
        self.value = nn.Linear(text_dim, dim)
        self.out = nn.Linear(dim, dim)
        self.project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, visual_BNC: Tensor, text_BTL: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Fuse.

        Args:
            visual_BNC: Tokens of the stage.
            text_BTL: Word features.
            token_mask_BT: bool, True at words; others get no attention.

        Returns:
            Multi-modal tokens [B, N, C].
        """
        query_B1NC = self.norm(self.query(visual_BNC)).unsqueeze(1)
        key_B1TC = self.key(text_BTL).unsqueeze(1)
        value_BTC = self.value(text_BTL)
        if self.centres_words:
            value_BTC = _less_their_mean(value_BTC, token_mask_BT)
        value_B1TC = value_BTC.unsqueeze(1)
        words_BNC = F.scaled_dot_product_attention(
            query_B1NC, key_B1TC, value_B1TC, attn_mask=token_mask_BT[:, None, None, :]
        ).squeeze(1)
        language_BNC = self.norm(self.out(words_BNC))
        fused_BNC = self.dropout(F.gelu(self.visual(visual_BNC))) * language_BNC
        return self.dropout(F.gelu(self.project(fused_BNC)))


class LanguageGate(nn.Module):
    """tanh gate, per token and channel, that decides how much of F enters the visual stream: E = V + gate(F) * F."""

    def __init__(self, dim: int) -> None:
        """Build for C = `dim`."""
        super().__init__()
        self.reduce = nn.Linear(dim, dim, bias=False)
        self.expand = nn.Linear(dim, dim, bias=False)

    def forward(self, visual_BNC: Tensor, fused_BNC: Tensor) -> Tensor:
        """Return E [B, N, C]."""
        return visual_BNC + torch.tanh(self.expand(F.relu(self.reduce(fused_BNC)))) * fused_BNC


class WordFusion(nn.Module):
    """Word attention and gate of one stage."""

    def __init__(self, dim: int, text_dim: int, dropout: float, norm: str) -> None:
        """Build for C = `dim`, L = `text_dim` and a norm out of `NORMS`."""
        super().__init__()
        self.attention = PixelWordAttention(dim, text_dim, dropout, norm)
        self.gate = LanguageGate(dim)

    def forward(self, visual_BNC: Tensor, text_BTL: Tensor, token_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return F, for the decoder, and E, for the next stage; both [B, N, C]."""
        fused_BNC = self.attention(visual_BNC, text_BTL, token_mask_BT)
        return fused_BNC, self.gate(visual_BNC, fused_BNC)
