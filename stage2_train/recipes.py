"""Recipes of stage 2: functions returning a `TrainConfig`. `--set a.b=c` changes single fields.

The systems L2L is compared with, the paper's ablations of it and our own fusions are changes to two base recipes: see
`variants`.

The embedded recipes share data, split, network, schedule and samples seen; only the method differs. The paper's
recipes state its published numbers; nothing of that size has been run here.
"""

import dataclasses
from collections.abc import Callable

from shared.config import DataConfig
from shared.muon import MuonConfig
from stage2_train.alarm import AlarmConfig
from stage2_train.config import L2lConfig, RuntimeConfig, TrainConfig
from stage2_train.optim import OptimConfig
from stage2_train.segmentor_config import paper_config, tiny_config
from stage2_train.text_augment import StrongTextConfig
from stage2_train.variants import ABLATIONS, BEYOND, COMPARISONS, Change

PAPER_BATCH = 16
"""Labelled, and as many unlabelled, samples per step: 4 GPUs with 4 each (that 4 is per GPU is our reading)."""

SWIN_B = "microsoft/swin-base-patch4-window12-384-in22k"
"""LAVT's `swin_base_patch4_window12_384_22k.pth` on the Hub."""

BERT_BASE = "google-bert/bert-base-uncased"
"""The language tower, and its tokenizer."""

PAPER_STEPS = 40 * 40_300 // PAPER_BATCH
"""40 epochs over the about 40,300 unlabelled references of RefCOCO at 5% (an epoch's meaning is our reading).

Other fractions and data sets train for as many steps, which are a little more or fewer epochs of theirs.
"""


def embedded() -> TrainConfig:
    """L2L on the embedded shapes, 1% of the masks, the tiny network from its shipped weights.

    `train embedded --out runs/l2l`. Needs the embedded data and its prior store. A few minutes on 2 CPU cores.
    """
    return TrainConfig(
        data=DataConfig(root="cache/data/refshapes", dataset="refshapes"),
        fraction=0.01,
        method="l2l",
        segmentor=tiny_config(sesm=True),
        steps=400,
        batch_labelled=16,
        batch_unlabelled=16,
        eval_every=100,
        val_limit=300,
        optim=OptimConfig(
            name="muon",
            muon=MuonConfig(lr=6e-3, adam_lr=3e-3, weight_decay=1e-2),
            pretrained_lr_scale=0.2,
            pretrained_prefixes=("vision.", "text.", "fusion."),
            warmup_steps=20,
            grad_clip=1.0,
        ),
        text=StrongTextConfig(table="shapes"),
        l2l=L2lConfig(band_px=0),
        alarm=AlarmConfig(grace_steps=100, patience=50),
        runtime=RuntimeConfig(checkpoint_every=100, log_every=10),
    )


def supervised_embedded() -> TrainConfig:
    """The labelled 1% alone: the lower bound of `embedded` (`--set fraction=1` gives the upper one)."""
    return _plain(embedded(), method="supervised")


def paper() -> TrainConfig:
    """L2L on RefCOCO (unc) at 5%, LAVT with Swin-B and BERT-base at 480 x 480, the paper's numbers.

    Needs `data/refer/` as for stage 1, its prior store, and the two pretrained towers: `l2l fetch train paper` fetches
    them, or folders are named (`--set segmentor.vision.weights=... --set segmentor.text.weights=...
    --set segmentor.text.tokenizer=...`).
    Published: 67.30 oIoU on val. `torchrun --nproc_per_node 4 ...`.
    """
    return TrainConfig(
        data=DataConfig(root="data/refer", dataset="refcoco"),
        fraction=0.05,
        method="l2l",
        segmentor=paper_config(sesm=True, vision_weights=SWIN_B, text_weights=BERT_BASE),
        seed=22,
        steps=PAPER_STEPS,
        batch_labelled=PAPER_BATCH,
        batch_unlabelled=PAPER_BATCH,
        precision="bf16",
        eval_every=PAPER_STEPS // 40,
        val_limit=0,
        optim=OptimConfig(name="adamw", lr=5e-5, weight_decay=1e-2, power=0.9),
        runtime=RuntimeConfig(workers=8, checkpoint_every=1000, shrink_finished=True, log_every=50),
    )


def paper_baseline() -> TrainConfig:
    """The paper's supervised LAVT with the same data and budget as `paper`."""
    return _plain(paper(), method="supervised")


def _plain(config: TrainConfig, *, method: str = "l2l") -> TrainConfig:
    """The same run by another method: no part of L2L acts."""
    return dataclasses.replace(
        config,
        method=method,
        segmentor=dataclasses.replace(config.segmentor, sesm=None),
        l2l=dataclasses.replace(config.l2l, use_spm=False, use_sesm=False, use_rple=False),
    )


def _varied(base: Callable[[], TrainConfig], change: Change) -> Callable[[], TrainConfig]:
    """The recipe that applies `change` to `base`, with the change's own documentation."""

    def recipe() -> TrainConfig:
        return change(base())

    recipe.__doc__ = change.__doc__
    return recipe


def _variants(base: Callable[[], TrainConfig], name: str) -> dict[str, Callable[[], TrainConfig]]:
    """`<method>-<name>` of every comparison system, `<name>-<change>` of every ablation of L2L and fusion beyond it."""
    compared = {
        f"{method}-{name}": _varied(lambda: _plain(base()), change) for method, change in COMPARISONS.items()
    }
    return compared | {
        f"{name}-{part}": _varied(base, change) for part, change in {**ABLATIONS, **BEYOND}.items()
    }


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "embedded": embedded,
    "supervised-embedded": supervised_embedded,
    **_variants(embedded, "embedded"),
    "paper": paper,
    "paper-baseline": paper_baseline,
    **_variants(paper, "paper"),
}
"""Recipe by the name the command line takes."""
