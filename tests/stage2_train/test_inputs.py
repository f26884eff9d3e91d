import dataclasses
from pathlib import Path

import torch

from shared.config import apply_overrides
from stage2_train.inputs import batch_plan, open_inputs
from stage2_train.prior_source import MisplacedPriors
from stage2_train.split import make_split
from stage2_train.text_augment import StrongTextConfig
from stage2_train.transforms import StrongConfig, WeakConfig
from stage2_train.weak_labels import collect_weak_labels
from tests.stage2_train.miniature import mini_config, plain_config


def test_batches_are_made_as_the_run_says(mini_root: Path) -> None:
    config = dataclasses.replace(
        mini_config(mini_root),
        seed=7,
        accumulation=2,
        weak=WeakConfig(flip_probability=0.25),
        strong=StrongConfig(operations=3),
        text=StrongTextConfig(candidates=4),
    )
    plan = batch_plan(config, rank=1, num_processes=2)
    assert (plan.weak, plan.strong, plan.text) == (config.weak, config.strong, config.text)
    assert (plan.seed, plan.accumulation, plan.rank, plan.num_processes) == (7, 2, 1, 2)
    assert (plan.batch_labelled, plan.batch_unlabelled) == (config.batch_labelled, config.batch_unlabelled)
    assert batch_plan(plain_config(mini_root, "supervised")).batch_unlabelled == 0


def test_a_run_misplaces_priors_by_its_own_seed(mini_root: Path) -> None:
    """Not by that of the labelled images, which runs that are compared have in common."""
    config = dataclasses.replace(mini_config(mini_root), misplaced_priors=0.5)

    def taken(seed: int, split_seed: int) -> dict[str, str]:
        inputs = open_inputs(dataclasses.replace(config, seed=seed, split_seed=split_seed))
        assert isinstance(inputs.priors, MisplacedPriors)
        return inputs.priors._taken_from

    assert taken(1, 2) == taken(1, 3) != taken(2, 2)


def test_labels_are_drawn_by_the_seed_of_the_split(mini_root: Path) -> None:
    """Of images and of points: runs of several seeds are given the same ones."""
    config = apply_overrides(plain_config(mini_root, "omni_res"), ["omni_res.weak_label=point"])
    one, other = (open_inputs(dataclasses.replace(config, seed=seed, split_seed=3)) for seed in (1, 2))
    split = make_split(one.dataset, config.fraction, 3)
    samples = [sample for ref in split.unlabelled for sample in ref]
    assert one.split.image_ids == other.split.image_ids == split.image_ids
    points = collect_weak_labels(one.dataset, samples, "point", 3).read(samples)
    for inputs in (one, other):
        assert inputs.weak_labels is not None and torch.equal(inputs.weak_labels.read(samples), points)
    assert not torch.equal(collect_weak_labels(one.dataset, samples, "point", 4).read(samples), points)
