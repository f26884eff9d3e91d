"""What thresholds make of a fused prior, and what the policy's reward says of them: one table, for RPLE's settings.

    python tests/bench/thresholds.py RUN [--recipe embedded] [--samples 300] [--set a.b=c]

The network of a finished run reads unlabelled training images (weak views), the recipe's own rule fuses its answers
with the stored priors, and labels are cut at a grid of thresholds. Beside each pair: the gain of eq. 12 without its
price for moving, as the paper states it and balanced over the classes, and what the held-back masks say of the labels.
Of pixels that prior, network or mask call foreground (the rest is background to all): shares labelled right and wrong;
of the mask: share labelled foreground. The masks are for looking alone; nothing here trains.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shared.config import apply_overrides  # noqa: E402
from stage2_train.batch import known_prior  # noqa: E402
from stage2_train.config import TrainConfig  # noqa: E402
from stage2_train.inputs import batch_plan, open_inputs  # noqa: E402
from stage2_train.losses import IGNORE  # noqa: E402
from stage2_train.networks import Networks, weak_text  # noqa: E402
from stage2_train.recipes import RECIPES  # noqa: E402
from stage2_train.resized_reader import ResizedReader  # noqa: E402
from stage2_train.rple.policy import pseudo_label  # noqa: E402
from stage2_train.rple.reward import quality  # noqa: E402
from stage2_train.run_files import load_model  # noqa: E402
from stage2_train.spm import fuse  # noqa: E402
from stage2_train.text import Tokenizer  # noqa: E402

FOREGROUND, BACKGROUND = (0.55, 0.6, 0.7, 0.8, 0.9, 0.95), (0.05, 0.2, 0.3, 0.45)
"""Thresholds that are tried."""
BATCH = 50
"""Samples read at once."""


def read(config: TrainConfig, run: Path, num: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(P†, Pw, P̃†, mask) of batches of unlabelled samples, [B,1,H,W] each and bool [B,H,W]."""
    inputs = open_inputs(config)
    source = inputs.source(replace(batch_plan(config), batch_unlabelled=BATCH), Tokenizer(config.segmentor))
    masks = ResizedReader(inputs.dataset, *config.size_hw)
    networks = Networks(load_model(run))
    for key in range(-(-num // BATCH)):
        part = source(key).unlabelled
        assert part is not None
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        prior_B1HW = known_prior(part, weak_B1HW)
        fused_B1HW, _ = fuse(prior_B1HW, weak_B1HW, config.spm, part.trust_B)
        mask_BHW = torch.stack([torch.from_numpy(masks.mask(sample)) for sample in part.samples])
        mask_BHW = torch.where(part.flip_B[:, None, None], mask_BHW.flip(-1), mask_BHW)
        yield prior_B1HW, weak_B1HW, fused_B1HW, mask_BHW


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run, for its network")
    parser.add_argument(
        "--recipe", default="embedded", choices=[n for n in RECIPES if RECIPES[n]().uses_prior]
    )
    parser.add_argument("--samples", type=int, default=300, help="unlabelled samples (default 300)")
    parser.add_argument("--set", action="append", default=[], help="change a field of the recipe")
    args = parser.parse_args()
    config = apply_overrides(RECIPES[args.recipe](), args.set)
    prior_B1HW, weak_B1HW, fused_B1HW, mask_BHW = (
        torch.cat(parts) for parts in zip(*read(config, args.run, args.samples), strict=True)
    )
    zone_BHW = (prior_B1HW[:, 0] > 0.5) | (weak_B1HW[:, 0] > 0.5) | mask_BHW
    reward = config.rple.reward
    weight_3 = torch.tensor((reward.margin, reward.consistency, reward.coverage))
    print(f"{'tau_fg':>6}{'tau_bg':>8}{'gain':>9}{'balanced':>10}{'right':>8}{'wrong':>8}{'recall':>8}")
    for high in FOREGROUND:
        for low in BACKGROUND:
            high_B, low_B = (torch.full((len(mask_BHW),), value) for value in (high, low))
            label_BHW = pseudo_label(fused_B1HW, high_B, low_B, 0)
            gains = [
                (quality(weak_B1HW, fused_B1HW, label_BHW, reward.beta, balanced).mean(0) * weight_3).sum()
                for balanced in (False, True)
            ]
            taken_BHW = (label_BHW != IGNORE) & zone_BHW
            right_BHW = taken_BHW & ((label_BHW == 1) == mask_BHW)
            shares = (
                right_BHW.sum() / zone_BHW.sum(),
                (taken_BHW & ~right_BHW).sum() / zone_BHW.sum(),
                ((label_BHW == 1) & mask_BHW).sum() / mask_BHW.sum(),
            )
            print(
                f"{high:>6.2f}{low:>8.2f}{gains[0]:>9.4f}{gains[1]:>10.4f}"
                + "".join(f"{share:>8.3f}" for share in shares)
            )


if __name__ == "__main__":
    main()
