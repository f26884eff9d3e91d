"""The embedded model: `Qwen2_5_VLForConditionalGeneration` from a tiny config, and its forward pass for training.

Training runs the very modules that are exported, but batches them its own way: Hugging Face's vision tower attends
image by image in a Python loop, and its text model takes one expression per image. Here images of one size are one
batch, and several expressions share the prefix that holds the image (a block mask keeps them apart). Tests hold both
passes equal to Hugging Face's.

Legend: B images, P = 64 patches, M = 16 merged patches (image tokens of the LM), L tokens of a row, C channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from shared.errors import DataError
from stage1_priors.tiny.tokenizer import END, IMAGE_PAD, IMAGE_SIZE_PX, MAX_LENGTH, PAD

PATCH_PX, MERGE = 14, 2
GRID = IMAGE_SIZE_PX // PATCH_PX
"""Patches along a side."""
NUM_IMAGE_TOKENS = (GRID // MERGE) ** 2


@dataclass(frozen=True, kw_only=True)
class TinyModelConfig:
    """Size of the embedded model."""

    hidden: int = 128
    """Width of the vision tower and of the language model."""
    num_vision_layers: int = 4
    """Vision blocks, all with full attention."""
    num_text_layers: int = 4
    """Language model layers."""
    num_heads: int = 4
    """Attention heads; key/value heads of the language model are half as many."""
    feed_forward: int = 384
    """Width of the gated feed-forward layers."""
    rope_theta: float = 10.0
    """Base of the multimodal rotary embedding; small, because the image is 4 x 4 tokens."""
    mrope_section: tuple[int, int, int] = (2, 7, 7)
    """Rotary channels of (time, height, width); they sum to half a head."""
    initializer_range: float = 0.05
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.hidden % self.num_heads or self.num_heads % 2:
            raise DataError(f"hidden {self.hidden} and num_heads {self.num_heads} do not fit together")
        if 2 * sum(self.mrope_section) != self.hidden // self.num_heads:
            raise DataError(f"mrope_section {self.mrope_section} does not sum to half a head")


def build_model(
    config: TinyModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised float32 model for `tokenizer`."""
    to_id = tokenizer.convert_tokens_to_ids
    hf_config = Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": config.hidden,
            "intermediate_size": config.feed_forward,
            "num_hidden_layers": config.num_text_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_heads // 2,
            "max_position_embeddings": MAX_LENGTH,
            "initializer_range": config.initializer_range,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": list(config.mrope_section),
            },
            "bos_token_id": None,
            "eos_token_id": to_id(END),
            "pad_token_id": to_id(PAD),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": config.num_vision_layers,
            "hidden_size": config.hidden,
            "intermediate_size": config.feed_forward,
            "num_heads": config.num_heads,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "window_size": IMAGE_SIZE_PX,
            "out_hidden_size": config.hidden,
            "fullatt_block_indexes": list(range(config.num_vision_layers)),
            "initializer_range": config.initializer_range,
        },
        image_token_id=to_id(IMAGE_PAD),
        video_token_id=to_id("<|video_pad|>"),
        vision_start_token_id=to_id("<|vision_start|>"),
        vision_end_token_id=to_id("<|vision_end|>"),
        tie_word_embeddings=True,
        initializer_range=config.initializer_range,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(hf_config)
    model.generation_config.eos_token_id = to_id(END)
    model.generation_config.pad_token_id = to_id(PAD)
    model.generation_config.do_sample = False
    return model


def patchify(pixel_B3HW: torch.Tensor) -> torch.Tensor:
    """Cut images into patches in Qwen2.5-VL's order: 2 x 2 blocks of patches, blocks row by row.

    Args:
        pixel_B3HW: float [B, 3, 112, 112], normalised.

    Returns:
        float [B, P, 3 * 14 * 14], channel-major within a patch (the processor's layout without its repeated time axis).
    """
    blocks = GRID // MERGE
    x = pixel_B3HW.view(-1, 3, blocks, MERGE, PATCH_PX, blocks, MERGE, PATCH_PX)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, GRID * GRID, 3 * PATCH_PX * PATCH_PX)


def patch_rows_columns() -> torch.Tensor:
    """Row and column of each patch in `patchify`'s order, int64 [P, 2]."""
    index = torch.arange(GRID * GRID).view(GRID // MERGE, MERGE, GRID // MERGE, MERGE)
    flat = index.permute(0, 2, 1, 3).reshape(-1)
    return torch.stack([flat // GRID, flat % GRID], dim=1)


def vision_features(model: Qwen2_5_VLForConditionalGeneration, pixel_B3HW: torch.Tensor) -> torch.Tensor:
    """The vision tower on a batch of equal images: `model.model.visual`, without its loop over images.

    Args:
        model: The model.
        pixel_B3HW: float [B, 3, 112, 112], normalised.

    Returns:
        float [B, M, C], image tokens row by row.
    """
    visual = model.model.visual
    batch = len(pixel_B3HW)
    # A still image is repeated along time, so the two time slices of the kernel act as their sum.
    kernel = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)
    x_BPC = F.linear(patchify(pixel_B3HW), kernel)
    cos_PD, sin_PD = visual.rotary_pos_emb(x_BPC, patch_rows_columns())
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x_BPC)).view(batch, -1, 3, attention.num_heads, attention.head_dim)
        query, key, value = qkv.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos_PD, sin_PD)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        x_BPC = x_BPC + attention.proj(mixed.transpose(1, 2).flatten(2))
        x_BPC = x_BPC + block.mlp(block.norm2(x_BPC))
    return visual.merger(x_BPC).view(batch, NUM_IMAGE_TOKENS, -1)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Token rows of a batch: the prefix with the image, then several expressions with their answers."""

    token_BL: torch.Tensor
    """int64, padded on the right."""
    segment_BL: torch.Tensor
    """int64: 0 the shared prefix, 1.. the expressions, -1 padding."""
    position_3BL: torch.Tensor
    """int64, positions of (time, height, width); every expression continues the prefix."""


def block_mask(segment_BL: torch.Tensor) -> torch.Tensor:
    """Who may look at whom: earlier tokens of the prefix and of one's own expression.

    Args:
        segment_BL: As in `Rows`.

    Returns:
        bool [B, 1, L, L], True where row's token may attend to column's.
    """
    own = segment_BL[:, :, None] == segment_BL[:, None, :]
    allowed = (own | (segment_BL[:, None, :] == 0)).tril()
    return allowed[:, None]


def text_states(
    model: Qwen2_5_VLForConditionalGeneration, rows: Rows, image_BMC: torch.Tensor
) -> list[torch.Tensor]:
    """The language model on rows of several expressions.

    Args:
        model: The model.
        rows: Tokens, segments and positions.
        image_BMC: Image tokens from `vision_features`.

    Returns:
        float [B, L, C] after each layer, and the normalised final state last (num_text_layers + 1 tensors).
    """
    language = model.model.language_model
    embedded = language.embed_tokens(rows.token_BL)
    is_image_BL1 = (rows.token_BL == model.config.image_token_id)[..., None]
    x_BLC = embedded.masked_scatter(is_image_BL1, image_BMC)
    mask = block_mask(rows.segment_BL)
    rotary = language.rotary_emb(x_BLC, rows.position_3BL)
    states = []
    for layer in language.layers:
        x_BLC = layer(x_BLC, attention_mask=mask, position_embeddings=rotary)
        states.append(x_BLC)
    return [*states, language.norm(x_BLC)]
