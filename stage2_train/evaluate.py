"""Scores of a finished run on one split: every sentence exactly once, whatever the number of processes.

Two frames, always both and always named: `model` (image AND mask resized to the model input, nearest for the mask, as
the LAVT family does) and `original` (logits upsampled bilinearly to the image's own size). The frozen prior's own
score stands beside them, read from the store after the network has answered: the network does not see a prior.
With `self_guided` a second pass sees the first pass's own prediction as its field; it is reported separately.
With `with_prior` a second pass sees the frozen prior, fused with the first one's prediction as in training: that is
another method, which needs the large model for every sentence it is asked, and it is reported under its own name.

Legend: B sentences of a batch, H W model input, h w an image's own size.
"""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from shared.datasets import load_dataset
from shared.errors import DataError
from shared.json_files import read_json, write_json
from shared.masks import encode_rle, resize_mask_nearest
from shared.metrics import LENGTH_BUCKETS, SegmentationMeter, iou, iou_counts
from shared.refer import ReferringDataset
from shared.runlog import progress
from shared.store.publish import publish_file
from shared.store.reader import PriorStore
from shared.types import Sample
from stage2_train.backbones.images import normalise_image
from stage2_train.config import TrainConfig
from stage2_train.data import PriorReader, Tokenise, scorable
from stage2_train.loader import iterate
from stage2_train.model_card import write_card
from stage2_train.prior_source import StorePriors, choose_store, made_alike, open_priors
from stage2_train.processes import start_accelerator
from stage2_train.run_files import load_model, place_of_store, read_run_config
from stage2_train.run_identity import note_moved_data
from stage2_train.seen_images import shared_with_train
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.spm import fuse
from stage2_train.text import Tokenizer
from stage2_train.transforms import resize_image, resize_prior, upsample

FRAMES = ("model", "original")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


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


def evaluate_run(
    run: str | Path,
    split: str,
    *,
    store: str = "",
    root: str = "",
    dataset_name: str = "",
    split_by: str = "",
    data_name: str = "",
    batch: int = 64,
    workers: int = 0,
    limit: int = 0,
    self_guided: bool = False,
    with_prior: bool = False,
    write: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a finished run and write `eval/<split>.json` and `.jsonl`; `<data_name>-<split>` on other data.

    Args:
        run: Run folder.
        split: Split of its data set.
        store: Store for the prior's own score; "" takes the run's, or the one that fits its data.
        root: Where the data set lies now; "": where it lay. Noted in the run if the annotations are those of before.
        dataset_name: Another data set under that root, for example `refcoco+`; "": the run's.
        split_by: Its split; "": the run's.
        data_name: What to call other data than the run's, whose scores are not those of its own splits; "":
            `dataset_name`.
        batch: Sentences per pass.
        workers: Processes that read images; 0 reads in a thread.
        limit: Evenly spaced sentences to score (0 = all).
        self_guided: Also score a second pass with the first one's prediction as field.
        with_prior: Also score a second pass with the frozen prior in its field: another method.
        write: Whether to write the files.
        quiet: No progress line.

    Returns:
        The content of the JSON file, on every process.

    Raises:
        DataError: An unfinished run, an unknown split, `self_guided` or `with_prior` for a network without a field,
            `with_prior` without a store that holds the split, or other annotations than the run's without a name.
    """
    run = Path(run)
    config = read_run_config(run, root)
    other = {key: value for key, value in (("dataset", dataset_name), ("split_by", split_by)) if value}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **other))
    data_name = data_name or dataset_name
    model = load_model(run)
    if (self_guided or with_prior) and (model.sesm is None or not config.trains_field):
        which = "self-guided pass" if self_guided else "pass with a prior"
        why = "was built without sesm" if model.sesm is None else "never saw a field in training"
        raise DataError(f"{run}: its network {why}: it has no {which}")
    dataset = load_dataset(config.data)
    _require_own_data(run, config, dataset, data_name)
    samples = spaced(scorable(dataset, split), limit)
    prior, note = _prior_for(run, config, dataset, samples, store)
    if with_prior and prior is None:
        raise DataError(f"{run}: no pass with a prior on {split}: {note}")
    filed = f"{data_name}-{split}" if data_name else split
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
        with_prior=field_rule(config) if with_prior else None,
        keep_masks=write,
        quiet=quiet or not accelerator.is_main_process,
    )
    result = {
        "split": filed,
        "data": {
            "name": data_name,
            "split": split,
            **dataclasses.asdict(config.data),
            "annotations": dataset.fingerprint(),
        },
        "shared_with_train": shared_with_train(run, dataset, config.data.root, samples),
        **summarise(rows),
        "num": len(rows),
        "masks": dataset.masks_hash(samples),
        "resolution": list(config.size_hw),
        "limit": limit,
        "prior_note": note,
        "method": config.method,
    }
    if write and accelerator.is_main_process:
        note_moved_data(run, config.data.root, dataset.fingerprint())
        _write(run / "eval", filed, result, rows)
        write_card(run)
    accelerator.wait_for_everyone()
    return result


def _require_own_data(run: Path, config: TrainConfig, dataset: ReferringDataset, data_name: str) -> None:
    """Refuse to file scores of other annotations under the run's own splits."""
    trained_on = read_json(run / "config.json").get("data_fingerprint")
    if data_name and not _NAME.fullmatch(data_name):
        raise DataError(
            f"data name {data_name!r}: letters, digits and _.+- alone, it becomes part of a file name"
        )
    if not data_name and trained_on and trained_on != dataset.fingerprint():
        raise DataError(
            f"{run}: was trained on other annotations than those in {config.data.root} ({config.data.dataset}): its "
            "scores there are no scores of its own splits, and images it has learnt from may be among them. "
            "--data-name NAME files them under that name"
        )


def is_scored(run: Path, split: str, masks: str) -> bool:
    """Whether a run was scored on a split with these masks (`masks_hash`); scores of an older code do not say."""
    file = run / "eval" / f"{split}.json"
    return file.is_file() and read_json(file).get("masks", masks) == masks


def _prior_for(
    run: Path, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample], store: str
) -> tuple[PriorReader | None, str]:
    """The store for the prior's own score, or None and why; a store named by the caller must fit.

    Where the run's own store lacks these samples, the one that is found for its data will do, if it was made alike.
    """
    if store:
        return open_priors(Path(store), config, dataset, samples), f"from {store}"
    own = read_json(run / "config.json").get("store") or {}
    recorded = place_of_store(own, config.cache_root) or own.get("path")
    try:
        path = Path(recorded) if recorded else choose_store(config, dataset)
        return open_priors(path, config, dataset, samples), f"from {path}"
    except DataError as error:
        wider = _wider_store(recorded, config, dataset, samples) if recorded else None
        return (wider, f"from {wider.store.path}") if wider else (None, f"no prior score: {error}")


def _wider_store(
    path: str | Path, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample]
) -> StorePriors | None:
    """Another store than the run's, made alike for the same data; None if there is none with these samples."""
    try:
        found = choose_store(dataclasses.replace(config, store=""), dataset)
        if made_alike(PriorStore(path), PriorStore(found)):
            return open_priors(found, config, dataset, samples)
    except DataError:
        pass
    return None


FieldRule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(P†, Pw, trust) -> the field a sample is given, as in the run's training."""


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
    prior: PriorReader | None = None,
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
            field_B1HW, on_B = _prior_field(item, logit_B2HW.softmax(1)[:, 1:], with_prior)
            passes["with_prior_"] = _margin(model(*inputs, field_B1HW, on_B).float())
        if item.prior_BGG is not None:
            passes["prior_"] = item.prior_BGG[:, None].float() / 255.0 - 0.5
        rows += _score_batch(item, passes, size_hw, keep_masks)
    model.train(was_training)
    gathered = gather_object(rows) if accelerator.num_processes > 1 else rows
    by_id = {row["sample_id"]: row for row in gathered}
    assert len(by_id) == len(gathered) == len(samples), (len(by_id), len(gathered), len(samples))
    return [by_id[sample.sample_id] for sample in samples]


def _prior_field(item: _EvalBatch, weak_B1HW: Tensor, rule: FieldRule) -> tuple[Tensor, Tensor]:
    """The field made of P† and bool [B]: whether the sample sees it; without a proposal it does not."""
    assert item.prior_BGG is not None and item.has_prior_B is not None and item.trust_B is not None
    prior_B1HW = resize_prior(item.prior_BGG, *weak_B1HW.shape[-2:]).to(weak_B1HW.device)
    field_B1HW = rule(prior_B1HW, weak_B1HW, item.trust_B.to(weak_B1HW.device))
    return field_B1HW, item.has_prior_B.to(weak_B1HW.device)


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


def _write(folder: Path, split: str, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Sentences first, the summary last."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    publish_file(folder / f"{split}.jsonl", lines.encode())
    write_json(folder / f"{split}.json", result)
