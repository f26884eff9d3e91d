"""What a run was taught from at its end: the pseudo-labels of its last unlabelled micro-batch, made again.

The finished network, or its averaged teacher where that is another one, reads that batch's weak views and the method's
own code cuts the pseudo-labels, as in the last step but with the weights after it (of 3DResT's rules the confident
pixels alone, see `methods/tscs_qdw.py`). Needs the run's model and data, and the store and checkpoint of runs that use
them.

Legend: B samples, H W model input.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from shared.types import Sample
from stage2_train.batch import UnlabelledPart
from stage2_train.config import TrainConfig
from stage2_train.inputs import Inputs, batch_plan
from stage2_train.losses import IGNORE
from stage2_train.pseudo_labels import Pseudo
from stage2_train.run_files import load_networks, open_own_inputs, read_run_config, restore_method
from stage2_train.text import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Taught:
    """One unlabelled sample and what it was taught, in the frame of the unmirrored image at the model's size."""

    sample: Sample
    """The sample."""
    prior_of: str
    """Id of the sample whose prior was read for it: its own, but where priors are misplaced; "" if none was read."""
    weak_HW: np.ndarray
    """bool: the weak view's prediction Pw, cut at 0.5."""
    target_HW: np.ndarray
    """bool: the map the labels are cut from (the fused prior, where the method has one), cut at 0.5."""
    foreground_HW: np.ndarray
    """bool: pixels taught as foreground."""
    background_HW: np.ndarray
    """bool: pixels taught as background; the rest is ignored."""


def taught_by(folder: Path, most: int) -> list[Taught]:
    """The first `most` samples of the run's last unlabelled micro-batch; none for a method without one.

    Args:
        folder: The run.
        most: Samples wanted.

    Raises:
        DataError: An unfinished run, data, store or checkpoint that is gone, or data or labels that are others by now.
    """
    config = read_run_config(folder)
    if not config.uses_unlabelled:
        return []
    inputs = open_own_inputs(folder, config)
    networks = load_networks(folder, config)
    method = restore_method(folder, config)
    with torch.no_grad():
        pseudo = method.pseudo(networks, _last_part(config, inputs))
    priors = inputs.priors
    return [
        _taught(pseudo, index, "" if priors is None else priors.row_read(pseudo.samples[index].sample_id))
        for index in range(min(most, len(pseudo.samples)))
    ]


def _last_part(config: TrainConfig, inputs: Inputs) -> UnlabelledPart:
    plan = replace(batch_plan(config), cache_mib=0)
    source = inputs.source(plan, Tokenizer(config.segmentor))
    part = source(config.steps * config.accumulation - 1).unlabelled
    assert part is not None, config.method
    return part


def _taught(pseudo: Pseudo, index: int, prior_of: str) -> Taught:
    mirrored = bool(pseudo.flip_B[index])

    def plain(mask_HW: torch.Tensor) -> np.ndarray:
        return (mask_HW.flip(-1) if mirrored else mask_HW).cpu().numpy()

    label_HW = pseudo.label_BHW[index]
    assert set(label_HW.unique().tolist()) <= {0, 1, IGNORE}
    return Taught(
        sample=pseudo.samples[index],
        prior_of=prior_of,
        weak_HW=plain(pseudo.weak_B1HW[index, 0] >= 0.5),
        target_HW=plain(pseudo.target_B1HW[index, 0] >= 0.5),
        foreground_HW=plain(label_HW == 1),
        background_HW=plain(label_HW == 0),
    )
