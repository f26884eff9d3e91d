"""Segment Anything models of a few thousand random weights, saved as Hugging Face folders."""

from pathlib import Path


def save_random_sam2(folder: Path, seed: int = 0) -> Path:
    """A `Sam2Model` of the embedded shape with random weights."""
    from stage1_priors.tiny_sam.export import export
    from stage1_priors.tiny_sam.model import TinySamConfig, build_model, build_processor

    export(build_model(TinySamConfig(hidden=8, decoder=32), seed), build_processor(), folder)
    return folder


def save_as_video_model(image_model: Path, folder: Path) -> Path:
    """The `Sam2Model` of a folder within a `Sam2VideoModel`, as SAM 2 is published: model type `sam2_video`."""
    from transformers import Sam2Model, Sam2Processor, Sam2VideoConfig, Sam2VideoModel

    image = Sam2Model.from_pretrained(image_model)
    config = Sam2VideoConfig(
        vision_config=image.config.vision_config,
        prompt_encoder_config=image.config.prompt_encoder_config,
        mask_decoder_config=image.config.mask_decoder_config,
        image_size=image.config.vision_config.backbone_config.image_size[0],
        memory_attention_hidden_size=image.config.mask_decoder_config.hidden_size,
        memory_encoder_hidden_size=image.config.mask_decoder_config.hidden_size,
    )
    video = Sam2VideoModel(config)
    unknown = video.load_state_dict(image.state_dict(), strict=False).unexpected_keys
    assert not unknown, unknown
    video.save_pretrained(folder)
    Sam2Processor.from_pretrained(image_model).save_pretrained(folder)
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
