"""Segment Anything models of a few thousand random weights, saved as Hugging Face folders."""

from pathlib import Path


def save_random_sam2(folder: Path, seed: int = 0) -> Path:
    """A `Sam2Model` of the embedded shape with random weights."""
    from stage1_priors.tiny_sam.export import export
    from stage1_priors.tiny_sam.model import TinySamConfig, build_model, build_processor

    export(build_model(TinySamConfig(hidden=8, decoder=32), seed), build_processor(), folder)
    return folder


def save_random_sam(folder: Path, seed: int = 0) -> Path:
    """A `SamModel` for 64 x 64 pixels with random weights."""
    import torch
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            output_channels=32,
            mlp_dim=64,
            window_size=4,
            global_attn_indexes=[1],
            num_pos_feats=16,
            initializer_range=0.2,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=32, image_size=64, patch_size=8, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
        ),
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SamModel(config)
    model.save_pretrained(folder)
    pad = {"height": 64, "width": 64}
    SamProcessor(SamImageProcessor(size={"longest_edge": 64}, pad_size=pad)).save_pretrained(folder)
    return folder
