"""Runs of one step with every family of towers; as a script, started by torchrun: `tower_processes.py ROOT OUT`."""

import dataclasses
import sys
from pathlib import Path

import torch.distributed as dist
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from shared.synth.expressions import VOCABULARY
from stage2_train.config import RuntimeConfig, TrainConfig
from stage2_train.optim import OptimConfig
from stage2_train.segmentor_config import TEXT_KINDS, VISION_KINDS
from stage2_train.train import train
from tests.stage2_train.backbones.test_towers import text_config, vision_config
from tests.stage2_train.miniature import mini_config, segmentor_config

TOWERS = [*((kind, "bert") for kind in VISION_KINDS), *(("swin", kind) for kind in TEXT_KINDS[1:])]
"""Kinds of vision and text tower of each run."""


def write_word_tokenizer(folder: Path) -> Path:
    """A `tokenizer.json` that holds every word of the drawn scenes."""
    words = ["<pad>", "<unk>", *VOCABULARY]
    raw = RawTokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>").save_pretrained(folder)
    return folder


def config_of(root: Path, words: Path, vision: str, text: str, accumulation: int) -> TrainConfig:
    """L2L with tiny towers, nothing dropped at random, and norms that see one sample at a time."""
    tokenizer = root / "tokenizer" if text == "bert" else words
    segmentor = dataclasses.replace(
        segmentor_config(root / "tokenizer", dropout=0.0),
        vision=vision_config(vision, drop_path=0.0),
        text=text_config(text, tokenizer=str(tokenizer)),
    )
    runtime = RuntimeConfig(log_every=1, checkpoint_every=0, tensorboard=False)
    optim = OptimConfig(name="adamw", lr=2e-3, grad_clip=1e6)  # never clips: the norm is logged
    return mini_config(
        root, steps=1, accumulation=accumulation, segmentor=segmentor, optim=optim, runtime=runtime
    )


def run_all(root: Path, words: Path, out: Path, accumulation: int = 1) -> None:
    """Train every pair of towers below `out`."""
    for vision, text in TOWERS:
        config = config_of(root, words, vision, text, accumulation)
        train(config, out / f"{vision}-{text}-{accumulation}", quiet=True)


if __name__ == "__main__":
    run_all(*map(Path, sys.argv[1:]))
    run_all(*map(Path, sys.argv[1:]), accumulation=2)
    dist.destroy_process_group()
