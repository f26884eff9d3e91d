"""Scores of a finished run on one split: every sentence exactly once, whatever the number of processes.

Two frames, always both and always named: `model` (image AND mask resized to the model input, nearest for the mask, as
the LAVT family does) and `original` (logits upsampled bilinearly to the image's own size). The frozen prior's own
score stands beside them, read from the store after the network has answered: the network never sees a prior here.
With `self_guided` a second pass sees the first pass's own prediction as its field; it is reported separately.

Legend: B sentences of a batch, H W model input, h w an image's own size.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from shared.errors import DataError
from shared.json_files import read_json, write_json
from shared.masks import encode_rle, resize_mask_nearest
from shared.metrics import SegmentationMeter, iou, iou_counts
from shared.refer import ReferringDataset
from shared.runlog import progress
from shared.store.publish import publish_file
from shared.types import Sample
from stage2_train.backbones.images import normalise_image
from stage2_train.config import TrainConfig
from stage2_train.data import PriorReader, Tokenise, load_data, scorable
from stage2_train.loader import iterate
from stage2_train.model_card import write_card
from stage2_train.prior_source import choose_store, open_priors
from stage2_train.processes import start_accelerator
from stage2_train.run_files import load_model, read_run_config
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.text import Tokenizer
from stage2_train.transforms import resize_image, upsample

FRAMES = ("model", "original")

LENGTH_BUCKETS: tuple[tuple[str, int], ...] = (
    ("1-2", 2),
    ("3-4", 4),
    ("5-7", 7),
    ("8-11", 11),
    ("12+", 10**9),
)
"""Name and largest number of words of each bucket."""


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
    """u8."""


class _EvalReader:
    """Batch of the key-th `batch` samples."""

    def __init__(
        self,
        dataset: ReferringDataset,
        samples: Sequence[Sample],
        size_hw: tuple[int, int],
        tokenise: Tokenise,
        prior: PriorReader | None,
        batch: int,
    ) -> None:
        self.dataset, self.samples, self.size_hw = dataset, samples, size_hw
        self.tokenise, self.prior, self.batch = tokenise, prior, batch

    def __call__(self, key: int) -> _EvalBatch:
        samples = tuple(self.samples[key * self.batch : (key + 1) * self.batch])
        images: dict[str, np.ndarray] = {}
        for sample in samples:
            if sample.file_name not in images:
                images[sample.file_name] = resize_image(self.dataset.image(sample), *self.size_hw)
        stacked = np.stack([images[sample.file_name] for sample in samples])
        ids_BT, token_mask_BT = self.tokenise([sample.expression for sample in samples])
        prior_BGG = None
        if self.prior is not None:
            proposal_BGG, has_prior_B = self.prior.read([sample.sample_id for sample in samples])
            prior_BGG = proposal_BGG * has_prior_B[:, None, None].to(proposal_BGG.dtype)
        return _EvalBatch(
            samples=samples,
            image_BHW3=torch.from_numpy(stacked),
            ids_BT=ids_BT,
            token_mask_BT=token_mask_BT,
            masks=tuple(self.dataset.mask(sample) for sample in samples),
            prior_BGG=prior_BGG,
        )


def evaluate_run(
    run: str | Path,
    split: str,
    *,
    store: str = "",
    batch: int = 64,
    workers: int = 0,
    limit: int = 0,
    self_guided: bool = False,
    write: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a finished run and write `eval/<split>.json` and `.jsonl`.

    Args:
        run: Run folder.
        split: Split of its data set.
        store: Store for the prior's own score; "" takes the run's, or the one that fits its data.
        batch: Sentences per pass.
        workers: Processes that read images; 0 reads in a thread.
        limit: Evenly spaced sentences to score (0 = all).
        self_guided: Also score a second pass with the first one's prediction as field.
        write: Whether to write the files.
        quiet: No progress line.

    Returns:
        The content of the JSON file, on every process.

    Raises:
        DataError: An unfinished run, an unknown split, or `self_guided` for a network without a field.
    """
    run = Path(run)
    config = read_run_config(run)
    model = load_model(run)
    if self_guided and model.sesm is None:
        raise DataError(f"{run}: its network was built without sesm: it has no self-guided pass")
    dataset = load_data(config.data)
    samples = spaced(scorable(dataset, split), limit)
    prior, note = _prior_for(run, config, dataset, samples, store)
    accelerator = start_accelerator()
    rows = score_samples(
        accelerator,
        model.to(accelerator.device),
        Tokenizer(model.config),
        dataset,
        samples,
        config.size_hw,
        prior=prior,
        batch=batch,
        workers=workers,
        self_guided=self_guided,
        keep_masks=write,
        quiet=quiet or not accelerator.is_main_process,
    )
    result = {
        "split": split,
        **summarise(rows),
        "num": len(rows),
        "resolution": list(config.size_hw),
        "limit": limit,
        "prior_note": note,
        "method": config.method,
    }
    if write and accelerator.is_main_process:
        _write(run / "eval", split, result, rows)
        write_card(run)
    accelerator.wait_for_everyone()
    return result


def _prior_for(
    run: Path, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample], store: str
) -> tuple[PriorReader | None, str]:
    """The store for the prior's own score, or None and why; a store named by the caller must fit."""
    if store:
        return open_priors(Path(store), config, dataset, samples), f"from {store}"
    recorded = read_json(run / "config.json").get("store") or {}
    try:
        path = Path(recorded["path"]) if recorded.get("path") else choose_store(config, dataset)
        return open_priors(path, config, dataset, samples), f"from {path}"
    except DataError as error:
        return None, f"no prior score: {error}"


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
    prior: PriorReader | None = None,
    batch: int = 64,
    workers: int = 0,
    self_guided: bool = False,
    keep_masks: bool = False,
    quiet: bool = True,
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
        self_guided: Also run the second pass.
        keep_masks: Add `pred_rle` (original frame) to each row.
        quiet: No progress line.

    Returns:
        One dictionary per sample, in the order of `samples`.
    """
    own = list(np.array_split(np.arange(len(samples)), accelerator.num_processes)[accelerator.process_index])
    reader = _EvalReader(dataset, [samples[i] for i in own], size_hw, tokenise, prior, batch)
    was_training = model.training
    model.eval()
    rows: list[dict[str, Any]] = []
    num_batches = -(-len(own) // batch)
    batches = iterate(reader, range(num_batches), workers=workers, prefetch=2)
    for item in progress(batches, num_batches, "score", quiet, unit="batch"):
        inputs = [t.to(accelerator.device) for t in (item.image_BHW3, item.ids_BT, item.token_mask_BT)]
        inputs[0] = normalise_image(inputs[0])
        logit_B2HW = model(*inputs).float()
        passes = {"": _margin(logit_B2HW)}
        if self_guided:
            passes["self_guided_"] = _margin(model(*inputs, logit_B2HW.softmax(1)[:, 1:]).float())
        if item.prior_BGG is not None:
            passes["prior_"] = item.prior_BGG[:, None].float() / 255.0 - 0.5
        rows += _score_batch(item, passes, size_hw, keep_masks)
    model.train(was_training)
    gathered = gather_object(rows) if accelerator.num_processes > 1 else rows
    by_id = {row["sample_id"]: row for row in gathered}
    assert len(by_id) == len(gathered) == len(samples), (len(by_id), len(gathered), len(samples))
    return [by_id[sample.sample_id] for sample in samples]


def _margin(logit_B2HW: Tensor) -> Tensor:
    """Foreground minus background logit, f32 [B,1,H,W] on the CPU; foreground where positive."""
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
                # The prior (prefix "prior_") counts as foreground from 0.5 on, a prediction above it.
                resized = upsample(margin_B1HW[i], true[frame].shape)
                pred = (resized >= 0 if prefix == "prior_" else resized > 0).numpy()
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
    """Scores of both frames: the model's, the prior's (None without a store), the self-guided pass's, by length."""
    has_prior = bool(rows) and "prior_iou_original" in rows[0]
    result: dict[str, Any] = {frame: _metrics(rows, "", frame) for frame in FRAMES}
    result["prior"] = {frame: _metrics(rows, "prior_", frame) for frame in FRAMES} if has_prior else None
    if rows and "self_guided_iou_original" in rows[0]:
        result["self_guided"] = {frame: _metrics(rows, "self_guided_", frame) for frame in FRAMES}
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


def _write(folder: Path, split: str, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Sentences first, the summary last."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    publish_file(folder / f"{split}.jsonl", lines.encode())
    write_json(folder / f"{split}.json", result)
