"""A very small network with random weights, on the shipped tokenizer."""

import torch

from stage2_train.segmentor import build_segmentor
from stage2_train.segmentor_config import EMBEDDED, SegmentorConfig, SesmConfig, TextConfig, VisionConfig


def small_config(sesm: bool = False, norm: str = "group") -> SegmentorConfig:
    return SegmentorConfig(
        vision=VisionConfig(
            image_size=32,
            embed_dim=8,
            depths=(2, 1, 1, 1),
            heads=(1, 1, 1, 1),
            window=2,
            absolute_positions=True,
        ),
        text=TextConfig(
            tokenizer=EMBEDDED,
            vocab_size=256,
            hidden=16,
            layers=1,
            heads=2,
            mlp=16,
            positions=32,
            dropout=0.0,
        ),
        decoder_width=8,
        decoder_norm=norm,  # type: ignore[arg-type]
        sesm=SesmConfig() if sesm else None,
    )


def small_model(sesm: bool = False, norm: str = "group") -> torch.nn.Module:
    torch.manual_seed(0)
    return build_segmentor(small_config(sesm, norm))
