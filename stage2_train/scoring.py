"""Scores of a network on samples: every sentence exactly once, whatever the number of processes.

Two frames, always both and always named: `model` (image AND mask resized to the model input, nearest for the mask, as
the LAVT family does) and `original` (logits upsampled bilinearly to the image's own size). The frozen prior's own
score stands beside them, read from the store after the network has answered: the network does not see a prior.
With `self_guided` a second pass sees the first pass's own prediction as its field; it is reported separately.
With `with_prior` a second pass sees the frozen prior, fused with the first one's prediction as in training: that is
another method, which needs the large model for every sentence it is asked, and it is reported under its own name.

Legend: B sentences of a batch, H W model input, h w an image's own size.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from shared.masks import encode_rle, resize_mask_nearest
from shared.metrics import LENGTH_BUCKETS, SegmentationMeter, iou, iou_counts
from shared.refer import ReferringDataset
from shared.runlog import progress
from shared.types import Sample
from stage2_train.backbones.images import normalise_image
from stage2_train.config import TrainConfig
from stage2_train.loader import iterate
from stage2_train.prior_source import StorePriors
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.spm import fuse
from stage2_train.text import Tokenise
from stage2_train.transforms import resize_image, resize_prior, upsample

FRAMES = ("model", "original")

FieldRule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(P†, Pw, trust) -> the field a sample is given, as in the run's training."""


@dataclass(frozen=True, kw_only=True)
class _EvalBatch:
    samples: tuple[Sample, ...]
    image_BHW3: Tensor
    """u8."""
    ids_BT: Tensor
    token_mask_BT: Tensor
    masks: tuple[np.ndarray, ...]
    """Bool [h,w] each."""
    prior_BGG: Tensor | None
    """u8; zero where the row has no proposal."""
    has_prior_B: Tensor | None
    """Bool: the row carries a usable proposal."""
    trust_B: Tensor | None
    """f32 in [0,1]: rank of the frozen model's confidence among training rows; NaN where it has none."""


class _EvalReader:
    """Batch of the key-th `batch` samples; holds what these samples need of the data set, for it travels to readers."""

    def __init__(
        self,
        dataset: ReferringDataset,
        samples: Sequence[Sample],
        size_hw: tuple[int, int],
        tokenise: Tokenise,
        prior: StorePriors | None,
        batch: int,
    ) -> None:
        self.dataset, self.samples, self.size_hw = dataset.only(samples), samples, size_hw
        self.tokenise, self.prior, self.batch = tokenise, prior, batch

    def __call__(self, key: int) -> _EvalBatch:
        samples = tuple(self.samples[key * self.batch : (key + 1) * self.batch])
        images: dict[str, np.ndarray] = {}
        for sample in samples:
            if sample.file_name not in images:
                images[sample.file_name] = resize_image(self.dataset.image(sample), *self.size_hw)
        stacked = np.stack([images[sample.file_name] for sample in samples])
        ids_BT, token_mask_BT = self.tokenise([sample.expression for sample in samples])
        prior_BGG = has_prior_B = trust_B = None
        if self.prior is not None:
            ids = [sample.sample_id for sample in samples]
            proposal_BGG, has_prior_B = self.prior.read(ids)
            prior_BGG = proposal_BGG * has_prior_B[:, None, None].to(proposal_BGG.dtype)
            trust_B = self.prior.trust(ids)
        return _EvalBatch(
            samples=samples,
            image_BHW3=torch.from_numpy(stacked),
            ids_BT=ids_BT,
            token_mask_BT=token_mask_BT,
            masks=tuple(self.dataset.mask(sample) for sample in samples),
            prior_BGG=prior_BGG,
            has_prior_B=has_prior_B,
            trust_B=trust_B,
        )


def field_rule(config: TrainConfig) -> FieldRule:
    """The rule of a run that was trained with a field."""

    def rule(prior_B1HW: Tensor, weak_B1HW: Tensor, trust_B: Tensor) -> Tensor:
        return fuse(prior_B1HW, weak_B1HW, config.spm, trust_B)[0] if config.l2l.use_spm else prior_B1HW

    return rule


def spaced(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples, evenly spaced (0 = all)."""
    if not limit or limit >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // limit] for i in range(limit)]


@torch.no_grad()
def score_samples(
    accelerator: Accelerator,
    model: ReferringSegmentor | nn.Module,
    tokenise: Tokenise,
    dataset: ReferringDataset,
    samples: Sequence[Sample],
    size_hw: tuple[int, int],
    *,
    prior: StorePriors | None = None,
    batch: int = 64,
    workers: int = 0,
    self_guided: bool = False,
    with_prior: FieldRule | None = None,
    keep_masks: bool = False,
    quiet: bool = True,
    before_batch: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Score every sample once; the work is shared out over processes and every process gets all rows.

    Args:
        accelerator: Processes and device.
        model: The network, on the device; left in the mode it came in.
        tokenise: Its tokenizer.
        dataset: Images and masks.
        samples: What to score, the same list on every process.
        size_hw: Model input.
        prior: For the prior's own score.
        batch: Sentences per pass.
        workers: As `loader.iterate`.
        self_guided: Also run a second pass that sees the first one's prediction.
        with_prior: Also run one that sees the field this makes of `prior` and the first one's prediction.
        keep_masks: Add `pred_rle` (original frame) to each row.
        quiet: No progress line.
        before_batch: Called before each batch that all processes have, so it may wait for the others; may raise.

    Returns:
        One dictionary per sample, in the order of `samples`.
    """
    own = list(np.array_split(np.arange(len(samples)), accelerator.num_processes)[accelerator.process_index])
    reader = _EvalReader(dataset, [samples[i] for i in own], size_hw, tokenise, prior, batch)
    was_training = model.training
    model.eval()
    rows: list[dict[str, Any]] = []
    num_batches = -(-len(own) // batch)
    in_common = -(-(len(samples) // accelerator.num_processes) // batch)
    batches = iterate(reader, range(num_batches), workers=workers, prefetch=2)
    for index, item in enumerate(progress(batches, num_batches, "score", quiet, unit="batch")):
        if index < in_common:
            before_batch()
        inputs = [t.to(accelerator.device) for t in (item.image_BHW3, item.ids_BT, item.token_mask_BT)]
        inputs[0] = normalise_image(inputs[0])
        logit_B2HW = model(*inputs).float()
        passes = {"": _margin(logit_B2HW)}
        if self_guided:
            passes["self_guided_"] = _margin(model(*inputs, logit_B2HW.softmax(1)[:, 1:]).float())
        if with_prior is not None:
            field_B1HW, rows_F = _prior_field(item, logit_B2HW.softmax(1)[:, 1:], with_prior)
            passes["with_prior_"] = _margin(model(*inputs, field_B1HW, rows_F).float())
        if item.prior_BGG is not None:
            passes["prior_"] = item.prior_BGG[:, None].float() / 255.0 - 0.5
        rows += _score_batch(item, passes, size_hw, keep_masks)
    model.train(was_training)
    gathered = gather_object(rows) if accelerator.num_processes > 1 else rows
    by_id = {row["sample_id"]: row for row in gathered}
    assert len(by_id) == len(gathered) == len(samples), (len(by_id), len(gathered), len(samples))
    return [by_id[sample.sample_id] for sample in samples]


def _prior_field(item: _EvalBatch, weak_B1HW: Tensor, rule: FieldRule) -> tuple[Tensor, Tensor]:
    """The field made of P†, and int64 [F]: the samples that see it, which are those with a proposal."""
    assert item.prior_BGG is not None and item.has_prior_B is not None and item.trust_B is not None
    prior_B1HW = resize_prior(item.prior_BGG, *weak_B1HW.shape[-2:]).to(weak_B1HW.device)
    field_B1HW = rule(prior_B1HW, weak_B1HW, item.trust_B.to(weak_B1HW.device))
    return field_B1HW, item.has_prior_B.nonzero()[:, 0].to(weak_B1HW.device)


def _margin(logit_B2HW: Tensor) -> Tensor:
    """Foreground minus background logit, f32 [B,1,H,W] on the CPU; foreground from 0 on."""
    return (logit_B2HW[:, 1:] - logit_B2HW[:, :1]).cpu()


def _score_batch(
    item: _EvalBatch, passes: Mapping[str, Tensor], size_hw: tuple[int, int], keep_masks: bool
) -> list[dict[str, Any]]:
    rows = []
    for i, (sample, mask_hw) in enumerate(zip(item.samples, item.masks, strict=True)):
        row: dict[str, Any] = {
            "sample_id": sample.sample_id,
            "expression": sample.expression,
            "image_id": sample.image_id,
            "ref_id": sample.ref_id,
            "file_name": sample.file_name,
            "no_target": sample.no_target,
        }
        true = {"model": resize_mask_nearest(mask_hw, size_hw), "original": mask_hw}
        for prefix, margin_B1HW in passes.items():
            for frame in FRAMES:
                pred = (upsample(margin_B1HW[i], true[frame].shape) >= 0).numpy()  # one half is foreground
                inter, union = iou_counts(pred, true[frame])
                row |= {
                    f"{prefix}iou_{frame}": iou(inter, union, sample.no_target),
                    f"{prefix}inter_{frame}": inter,
                    f"{prefix}union_{frame}": union,
                }
                if keep_masks and not prefix and frame == "original":
                    row["pred_rle"] = encode_rle(pred)
        rows.append(row)
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of both frames: the model's, the prior's (None without a store), the further passes', by length."""
    has_prior = bool(rows) and "prior_iou_original" in rows[0]
    result: dict[str, Any] = {frame: _metrics(rows, "", frame) for frame in FRAMES}
    result["prior"] = {frame: _metrics(rows, "prior_", frame) for frame in FRAMES} if has_prior else None
    for name in ("self_guided", "with_prior"):
        if rows and f"{name}_iou_original" in rows[0]:
            result[name] = {frame: _metrics(rows, f"{name}_", frame) for frame in FRAMES}
    buckets: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        words = len(row["expression"].split())
        buckets[next(name for name, most in LENGTH_BUCKETS if words <= most)].append(row)
    result["by_length"] = {
        name: _metrics(buckets[name], "", "original") for name, _ in LENGTH_BUCKETS if buckets[name]
    }
    return result


def _metrics(rows: Sequence[Mapping[str, Any]], prefix: str, frame: str) -> dict[str, float]:
    meter = SegmentationMeter()
    for row in rows:
        counts = (row[f"{prefix}inter_{frame}"], row[f"{prefix}union_{frame}"])
        meter.update(row["sample_id"], *counts, row.get("no_target", False))
    return meter.result()
