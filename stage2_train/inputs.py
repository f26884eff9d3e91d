"""Opens what a run reads, so that every error of the user's shows before anything is built or written."""

from dataclasses import dataclass
from pathlib import Path

from shared.datasets import load_dataset
from shared.errors import DataError
from shared.refer import ReferringDataset
from shared.runlog import say
from stage2_train.batch_source import BatchPlan, BatchSource
from stage2_train.candidates import StoreCandidates
from stage2_train.config import TrainConfig
from stage2_train.prior_source import MisplacedPriors, StorePriors
from stage2_train.same_images import require_same_images
from stage2_train.split import Split, make_split, scorable
from stage2_train.store_choice import choose_store, open_priors, require_fitting
from stage2_train.text import Tokenise, Tokenizer, say_unread
from stage2_train.weak_labels import WeakLabels, collect_weak_labels


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads."""

    dataset: ReferringDataset
    """The data set."""
    split: Split
    """Its labelled and unlabelled part."""
    priors: StorePriors | None
    """The prior store, where the method needs one."""
    candidates: StoreCandidates | None = None
    """Candidate masks out of the prior store, where the method needs them."""
    weak_labels: WeakLabels | None = None
    """Boxes or points of the unlabelled objects, where the method is given them."""

    @property
    def store(self) -> dict[str, str] | None:
        """Path and fingerprint of the store."""
        reader = self.priors or self.candidates
        if reader is None:
            return None
        return {"path": str(reader.store.path), "fingerprint": reader.store.fingerprint}

    def source(self, plan: BatchPlan, tokenise: Tokenise) -> BatchSource:
        """Makes batches of all that is open here."""
        return BatchSource(
            self.dataset, self.split, plan, tokenise, self.priors, self.candidates, self.weak_labels
        )


def batch_plan(config: TrainConfig, *, rank: int = 0, num_processes: int = 1) -> BatchPlan:
    """What shapes the batches that one process of a run reads."""
    return BatchPlan(
        seed=config.seed,
        height=config.size_hw[0],
        width=config.size_hw[1],
        batch_labelled=config.batch_labelled,
        batch_unlabelled=config.batch_unlabelled if config.uses_unlabelled else 0,
        burn_in_steps=config.burn_in_steps,
        accumulation=config.accumulation,
        rank=rank,
        num_processes=num_processes,
        cache_mib=config.runtime.cache_mib,
        weak=config.weak,
        strong=config.strong,
        text=config.text,
    )


def open_inputs(config: TrainConfig, *, store_comes: bool = False, quiet: bool = False) -> Inputs:
    """Open data, split and store; every error of the user's shows here.

    Args:
        config: The run.
        store_comes: `config.store` is being written by jobs that end before the run begins. What there is of it is
            looked at, and nothing of it is opened.
        quiet: No progress bar over images that have to be compared with those of the store.

    Raises:
        DataError: Missing or foreign data, split or store.
    """
    dataset = load_dataset(config.data)
    split = open_split(config, dataset)
    priors, candidates, weak_labels = None, None, None
    if config.uses_store:
        samples = dataset.samples("train")
        if store_comes:
            require_fitting(Path(config.store), config, dataset, samples)
            return Inputs(dataset=dataset, split=split, priors=None, candidates=None, weak_labels=None)
        opened = open_priors(choose_store(config, dataset, quiet=quiet), config, dataset, samples)
        require_same_images(opened.store, config, dataset, samples, quiet=quiet)
        if config.misplaced_priors:
            opened = MisplacedPriors(opened.store, samples, config.misplaced_priors, config.seed)
        priors = opened if config.uses_prior else None
        candidates = StoreCandidates(opened.store, config.semires) if config.uses_candidates else None
    if config.weak_label:
        samples = [sample for ref in split.unlabelled for sample in ref]
        weak_labels = collect_weak_labels(dataset, samples, config.weak_label, config.split_seed)
    return Inputs(dataset=dataset, split=split, priors=priors, candidates=candidates, weak_labels=weak_labels)


def open_split(config: TrainConfig, dataset: ReferringDataset) -> Split:
    """The labelled and the unlabelled part of a run's train split; its validation split is looked at too.

    Every mask that the run learns from or is validated with is read once: a run keeps to the masks that it began with,
    so one that shows to be unreadable later could not be mended.

    Raises:
        DataError: No labelled image, no unlabelled one for a method that learns from them, nothing to validate on, or a
            mask that cannot be read.
    """
    split = make_split(dataset, config.fraction, config.split_seed, config.image_ids_file)
    if config.uses_unlabelled and not split.unlabelled:
        raise DataError(
            f"every train image is labelled: method {config.method} needs unlabelled ones; lower fraction"
        )
    if config.eval_every and config.val_split not in dataset.splits:
        raise DataError(
            f"val_split {config.val_split!r} is not one of {', '.join(dataset.splits)}; or set eval_every=0"
        )
    dataset.require_masks([ref[0] for ref in split.labelled])
    if config.eval_every:
        dataset.require_masks(scorable(dataset, config.val_split))
    return split


def say_no_candidates(config: TrainConfig, inputs: Inputs) -> None:
    """One note on standard error if a method that matches against candidate masks reads a store without any."""
    if inputs.candidates is not None and not inputs.candidates.are_stored:
        say(
            f"note: {inputs.candidates.store.path} holds no candidate masks: {config.method} matches against the masks "
            "of all training sentences of an image instead; `l2l priors run` with --set proposer.candidates.num=16 "
            "makes a store with them"
        )


def say_lost_text(config: TrainConfig, split: Split) -> None:
    """One note on standard error if the tokenizer cannot read the sentences that a run learns from.

    Raises:
        DataError: There is no such tokenizer.
    """
    refs = split.labelled + (split.unlabelled if config.uses_unlabelled else ())
    say_unread(Tokenizer(config.segmentor), [sample.expression for ref in refs for sample in ref])
