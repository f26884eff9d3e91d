"""The embedded mask proposer: `Sam2Model` from a tiny config, and its image processor's settings.

Patches of 4 pixels as published, but an image of 128 x 128 (published: 1024), so masks come out at 32 x 32. The two
random matrices that encode coordinates (for the image and for the prompt) are one and the same, as in the published
weights; fresh Hugging Face models draw them apart.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor
from transformers.models.sam2.configuration_sam2 import (
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from shared.errors import DataError

IMAGE_SIZE_PX = 128
"""Side of the square the model sees."""
PATCH_PX = 4
"""Side of a patch."""
MASK_SIZE = IMAGE_SIZE_PX // PATCH_PX
"""Side of the mask logits."""
WINDOW = 8
"""Tokens along a side of an attention window in the finest stage."""


@dataclass(frozen=True, kw_only=True)
class TinySamConfig:
    """Size of the embedded proposer."""

    hidden: int = 16
    """Width of the finest of the four stages; each stage doubles it."""
    blocks: tuple[int, int, int, int] = (1, 1, 2, 1)
    """Blocks of each stage; the last block of the third attends to the whole image."""
    decoder: int = 64
    """Width of the feature pyramid, the prompt encoder and the mask decoder."""
    heads: int = 4
    """Attention heads of the mask decoder."""
    frequencies: float = 0.5
    """Standard deviation of the random frequencies that encode coordinates (published: 1). Half of it makes two points
    resemble each other up to about 20 pixels, the size of an object."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.hidden < 8 or self.hidden % 8 or self.decoder % (8 * self.heads):
            raise DataError(
                f"hidden {self.hidden}, decoder {self.decoder} and heads {self.heads} do not fit together"
            )
        if min(self.blocks) < 1:
            raise DataError(f"blocks {self.blocks}: every stage needs one")


def build_model(config: TinySamConfig, seed: int) -> Sam2Model:
    """A freshly initialised float32 model in training mode."""
    widths = [config.hidden * 2**stage for stage in range(4)]
    sides = [MASK_SIZE // 2**level for level in range(3)]
    backbone = Sam2HieraDetConfig(
        hidden_size=config.hidden,
        image_size=[IMAGE_SIZE_PX, IMAGE_SIZE_PX],
        patch_kernel_size=[7, 7],
        patch_stride=[PATCH_PX, PATCH_PX],
        patch_padding=[3, 3],
        blocks_per_stage=list(config.blocks),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[WINDOW, WINDOW // 2, WINDOW, WINDOW // 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[sum(config.blocks[:3]) - 1],
        mlp_ratio=2.0,
    )
    hf_config = Sam2Config(
        architectures=["Sam2Model"],
        vision_config=Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=widths[::-1],
            backbone_feature_sizes=[[side, side] for side in sides],
            fpn_hidden_size=config.decoder,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(
            hidden_size=config.decoder,
            image_size=IMAGE_SIZE_PX,
            patch_size=4 * PATCH_PX,
        ),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=config.decoder,
            mlp_dim=4 * config.decoder,
            num_attention_heads=config.heads,
            iou_head_hidden_dim=config.decoder,
            dynamic_multimask_via_stability=False,
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam2Model(hf_config)
        _widen(model)
    with torch.no_grad():
        shared = model.shared_image_embedding.positional_embedding
        shared.mul_(config.frequencies)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    return model.train()


@torch.no_grad()
def _widen(model: Sam2Model) -> None:
    """Initial weights for narrow layers: Hugging Face's deviation of 0.02 leaves every attention of them uniform.

    Queries and keys of the mask decoder start from one projection, so that attention begins as nearness of positions.
    Features of the image enter the decoder small, so that what it learnt about boxes alone outlives their arrival.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(module, nn.ConvTranspose2d)
            num_inputs = len(module.weight) if transposed else module.weight[0].numel()
            nn.init.trunc_normal_(module.weight, std=num_inputs**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    for module in model.mask_decoder.modules():
        if hasattr(module, "q_proj"):
            module.k_proj.load_state_dict(module.q_proj.state_dict())
    for entry in (*model.vision_encoder.neck.convs, model.mask_decoder.conv_s0, model.mask_decoder.conv_s1):
        entry.weight.mul_(0.1)


def build_processor() -> Sam2Processor:
    """The processor that goes with the model: resize to the square, ImageNet normalisation."""
    side = {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}
    mask = {"height": MASK_SIZE, "width": MASK_SIZE}
    return Sam2Processor(Sam2ImageProcessor(size=side, mask_size=mask), target_size=IMAGE_SIZE_PX)
