"""Labelled and unlabelled batches from a data set, a split and a prior store.

Legend: as in `stage2_train.batch`; G side of the prior grid.
Invariants: a batch is a pure function of (seed, step, micro-batch, rank); the reader is a view of the data set that
cannot give out the masks of unlabelled samples; image, mask, prior and left/right words are flipped together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shared.errors import DataError
from shared.refer import ReferringDataset
from shared.seeding import rng
from shared.types import Sample
from stage2_train.batch import Batch, LabelledPart, UnlabelledPart
from stage2_train.candidates import StoreCandidates
from stage2_train.order import Draw, draw, micro_positions
from stage2_train.prior_source import StorePriors
from stage2_train.resized_reader import ResizedReader
from stage2_train.split import Split
from stage2_train.text import Tokenise
from stage2_train.text_augment import StrongTextConfig, draw_candidates
from stage2_train.transforms import (
    StrongConfig,
    WeakConfig,
    draw_flip,
    flip_columns,
    mirror_words,
    resize_prior,
    strong_image,
)
from stage2_train.weak_labels import WeakLabels, mirror_weak_label


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What shapes the batches, beside the data itself."""

    seed: int
    height: int
    width: int
    batch_labelled: int
    """Global, per optimiser step."""
    batch_unlabelled: int
    """Global, per optimiser step; 0 reads none."""
    burn_in_steps: int = 0
    """First steps, of which no unlabelled sample is read: none takes part in them."""
    accumulation: int
    rank: int
    num_processes: int
    cache_mib: int
    weak: WeakConfig
    strong: StrongConfig
    text: StrongTextConfig


class BatchSource:
    """Makes batches; picklable as long as its parts are."""

    def __init__(
        self,
        dataset: ReferringDataset,
        split: Split,
        plan: BatchPlan,
        tokenise: Tokenise,
        prior: StorePriors | None,
        candidates: StoreCandidates | None = None,
        weak_labels: WeakLabels | None = None,
    ) -> None:
        """Restrict `dataset` to the labelled masks before anything is read.

        Args:
            dataset: Images, and the masks of the labelled ones.
            split: Which those are.
            plan: What shapes the batches.
            tokenise: The network's tokenizer.
            prior: P† of every sample, where the method reads it.
            candidates: Candidate masks of the unlabelled images, where the method reads them.
            weak_labels: Boxes or points of the unlabelled objects, where the method reads them.

        Raises:
            DataError: Unlabelled samples are asked for and there are none.
        """
        if plan.batch_unlabelled and not split.unlabelled:
            raise DataError(
                "every train image is labelled: this method needs unlabelled ones; lower fraction"
            )
        self.split, self.plan, self.tokenise, self.prior = split, plan, tokenise, prior
        self.candidates, self.weak_labels = candidates, weak_labels
        used = split.labelled + (split.unlabelled if plan.batch_unlabelled else ())
        self.reader = ResizedReader(
            dataset.without_masks(split.image_ids),
            plan.height,
            plan.width,
            num_images=len({ref[0].file_name for ref in used}),
            num_masks=len({ref[0].ann_id for ref in split.labelled}),
            cache_mib=plan.cache_mib,
        )

    def __call__(self, key: int) -> Batch:
        """The batch of `key = step * accumulation + micro`."""
        step, micro = divmod(key, self.plan.accumulation)
        labelled = self._labelled(self._draws("labelled", step, micro))
        unlabelled = None
        if self.plan.batch_unlabelled and step >= self.plan.burn_in_steps:
            unlabelled = self._unlabelled(self._draws("unlabelled", step, micro))
        return Batch(step=step, micro=micro, labelled=labelled, unlabelled=unlabelled)

    def unlabelled_of(self, samples: Sequence[Sample]) -> UnlabelledPart:
        """The unlabelled part for given samples instead of drawn ones, with the views of their first cycle."""
        return self._unlabelled([Draw(cycle=0, sample=sample) for sample in samples])

    def _draws(self, stream: str, step: int, micro: int) -> list[Draw]:
        plan = self.plan
        labelled = stream == "labelled"
        positions = micro_positions(
            step,
            micro,
            plan.rank,
            batch=plan.batch_labelled if labelled else plan.batch_unlabelled,
            accumulation=plan.accumulation,
            num_processes=plan.num_processes,
        )
        refs = self.split.labelled if labelled else self.split.unlabelled
        return [draw(plan.seed, stream, position, refs) for position in positions]

    def _rng(self, item: Draw, purpose: str) -> np.random.Generator:
        return rng(self.plan.seed, item.cycle, item.sample.sample_id, purpose)

    def _labelled(self, draws: list[Draw]) -> LabelledPart:
        flips = [draw_flip(self._rng(item, "weak view"), self.plan.weak) for item in draws]
        masks = [_flipped(self.reader.mask(item.sample), f) for item, f in zip(draws, flips, strict=True)]
        ids_BT, token_mask_BT = self.tokenise(
            [_mirrored(item.sample.expression, f) for item, f in zip(draws, flips, strict=True)]
        )
        prior_B1HW, has_prior_B = self._prior(draws, flips)
        return LabelledPart(
            samples=tuple(item.sample for item in draws),
            flip_B=torch.tensor(flips),
            image_BHW3=_stack_images(self._weak(draws, flips)),
            target_BHW=torch.from_numpy(np.stack(masks)),
            ids_BT=ids_BT,
            token_mask_BT=token_mask_BT,
            prior_B1HW=prior_B1HW,
            has_prior_B=has_prior_B,
            trust_B=self._trust(draws),
            field_uniform_B=self._uniform(draws, "field"),
        )

    def _unlabelled(self, draws: list[Draw]) -> UnlabelledPart:
        plan = self.plan
        flips = [draw_flip(self._rng(item, "weak view"), plan.weak) for item in draws]
        weak = self._weak(draws, flips)
        strong = [
            strong_image(image, self._rng(item, "strong image"), plan.strong)
            for item, image in zip(draws, weak, strict=True)
        ]
        texts = [
            draw_candidates(_mirrored(item.sample.expression, f), self._rng(item, "strong text"), plan.text)
            for item, f in zip(draws, flips, strict=True)
        ]
        ids, token_mask = self.tokenise([text for candidates in texts for text in candidates])
        shape = (len(draws), 1 + plan.text.candidates, -1)
        prior_B1HW, has_prior_B = self._prior(draws, flips)
        return UnlabelledPart(
            samples=tuple(item.sample for item in draws),
            flip_B=torch.tensor(flips),
            weak_BHW3=_stack_images(weak),
            strong_BHW3=_stack_images(strong),
            candidate_ids_BKT=ids.reshape(shape),
            candidate_mask_BKT=token_mask.reshape(shape),
            choice_uniform_B=self._uniform(draws, "text choice"),
            prior_B1HW=prior_B1HW,
            has_prior_B=has_prior_B,
            trust_B=self._trust(draws),
            field_uniform_B=self._uniform(draws, "field"),
            noise_B2=torch.from_numpy(
                np.stack(
                    [self._rng(item, "exploration").standard_normal(2, dtype=np.float32) for item in draws]
                )
            ),
            candidates_BMHW=self._candidates(draws, flips),
            **self._weak_labels(draws, flips),
        )

    def _weak(self, draws: list[Draw], flips: list[bool]) -> list[np.ndarray]:
        return [_flipped(self.reader.image(item.sample), f) for item, f in zip(draws, flips, strict=True)]

    def _uniform(self, draws: list[Draw], purpose: str) -> torch.Tensor:
        return torch.tensor([float(self._rng(item, purpose).random(dtype=np.float32)) for item in draws])

    def _prior(self, draws: list[Draw], flips: list[bool]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.prior is None:
            return None, None
        proposal_BGG, has_prior_B = self.prior.read([item.sample.sample_id for item in draws])
        prior_B1HW = resize_prior(proposal_BGG, self.plan.height, self.plan.width)
        flip_B = torch.tensor(flips)
        prior_B1HW = torch.where(flip_B[:, None, None, None], prior_B1HW.flip(-1), prior_B1HW)
        return prior_B1HW, has_prior_B

    def _trust(self, draws: list[Draw]) -> torch.Tensor | None:
        return None if self.prior is None else self.prior.trust([item.sample.sample_id for item in draws])

    def _candidates(self, draws: list[Draw], flips: list[bool]) -> torch.Tensor | None:
        if self.candidates is None:
            return None
        soft_BMGG = self.candidates.read([item.sample for item in draws])
        soft_NHW = resize_prior(soft_BMGG.flatten(0, 1), self.plan.height, self.plan.width)[:, 0]
        mask_BMHW = soft_NHW.unflatten(0, soft_BMGG.shape[:2]) >= 0.5
        return torch.where(torch.tensor(flips)[:, None, None, None], mask_BMHW.flip(-1), mask_BMHW)

    def _weak_labels(self, draws: list[Draw], flips: list[bool]) -> dict[str, torch.Tensor]:
        if self.weak_labels is None:
            return {}
        values = self.weak_labels.read([item.sample for item in draws])
        name = {"box": "box_B4", "point": "point_B2"}[self.weak_labels.kind]
        return {name: torch.where(torch.tensor(flips)[:, None], mirror_weak_label(values), values)}


def _flipped(array: np.ndarray, flip: bool) -> np.ndarray:
    return flip_columns(array) if flip else array


def _mirrored(text: str, flip: bool) -> str:
    return mirror_words(text) if flip else text


def _stack_images(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))
