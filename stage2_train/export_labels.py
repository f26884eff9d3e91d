"""The pseudo-labels of a finished run's unlabelled sentences, for any other trainer.

    OUT/images, OUT/images.h5                    links to the images of the data set, and to its pack if it has one
    OUT/<dataset>-pseudo/instances.json          COCO: one annotation a sentence
    OUT/<dataset>-pseudo/refs(<split_by>).p      REFER: one ref a sentence, split `train`
    OUT/<dataset>-pseudo/labels.partial.jsonl    until both are whole: what the same command goes on with after a kill

The finished network, or the averaged teacher where that is another one (`ema.teacher`, not `ema.export`), reads the
unmirrored weak view, and the method's own code fuses what it fuses and cuts the label, without exploration: what the
network would be taught next (of 3DResT the confident pixels alone: where only the average is left it has no student to
agree with). An annotation's mask is the map the label is cut from (of Omni-RES inside the box, or of the object that
holds the point), at 0.5 and at the image's own size. As in evaluation the network computes in float32, whatever it was
trained in. Beside COCO's fields an annotation carries

- `score`: mean of that map over the mask, not calibrated (0 for an empty mask);
- `accepted_area`, `ignored_area`, `ignored` (RLE): pixels the method would teach, and those it would leave out;
- `source`: `prediction+prior`, or `prediction` where no usable prior was read;
- `sample_id`, `ref_id`, `expression`: which sentence of the data set it belongs to.

Every sentence is a ref of its own, since sentences of one object differ in their labels; `ref_id` of a REFER row is the
data set's sentence id.

Legend: B samples, H W model input, h w an image's own size.
"""

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.errors import DataError
from shared.image_pack import PACK_NAME
from shared.masks import encode_rle, mask_box_xyxy_px, resize_mask_nearest
from shared.own_device import own_device
from shared.runlog import progress
from shared.store.publish import clean_partials, disk_errors, publish_file, remove_synced
from shared.types import Sample
from stage2_train.batch import UnlabelledPart, to_device
from stage2_train.batch_source import BatchPlan, BatchSource
from stage2_train.config import TrainConfig
from stage2_train.export_labels_partial import PARTIAL, append, identity_of_labels, take_over
from stage2_train.inputs import batch_plan
from stage2_train.loader import iterate
from stage2_train.losses import IGNORE
from stage2_train.processes import require_single_process
from stage2_train.pseudo_labels import Pseudo
from stage2_train.run_files import (
    load_networks,
    open_own_inputs,
    read_run_config,
    require_data_there,
    restore_method,
)
from stage2_train.text import Tokenizer
from stage2_train.text_augment import StrongTextConfig
from stage2_train.transforms import StrongConfig, WeakConfig, upsample

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}
"""The only category: what a sentence names."""


def export_labels(
    run: str | Path,
    out: str | Path,
    *,
    batch: int = 16,
    limit: int = 0,
    root: str = "",
    store: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the pseudo-labels, or go on where the same call was killed: the files become the same, byte for byte.

    Batches are read as in training (`runtime.workers`, `runtime.prefetch`), ahead of the network.

    Args:
        run: Folder of a finished run.
        out: Folder to write below.
        batch: Sentences per pass.
        limit: First sentences alone (0 = all).
        root: Where the data set lies now; "": where it lay.
        store: Where the run's store lies now, or another one to read instead; "": where it lay, or below `cache_root`.
        quiet: No progress bar.

    Returns:
        Where the files lie, `num` sentences, how many by source, and shares of empty masks and ignored pixels.

    Raises:
        DataError: An unfinished run, one whose method makes no pseudo-labels, data, priors or a teacher that are gone,
            annotations or labels that are others than the run's, several processes, or a folder that holds labels
            already, what another run, batch or limit has begun, or a link to other images, or cannot be written to.
    """
    require_single_process("export-labels")
    run, out = Path(run), Path(out)
    config = read_run_config(run, root)
    require_data_there(run, config)
    if not config.uses_unlabelled:
        raise DataError(f"{run}: method {config.method} makes no pseudo-labels")
    folder = out / f"{config.data.dataset}-pseudo"
    begun = folder / PARTIAL
    if (folder / "instances.json").exists() and not begun.exists():
        raise DataError(f"{folder} holds labels already; remove it or choose another folder")
    links = _image_links(out, config)
    _require_own_images(links)
    device = own_device()
    networks = load_networks(run, config, device)
    method, inputs = restore_method(run, config), open_own_inputs(run, config, store=store, quiet=quiet)
    samples = [sample for ref in inputs.split.unlabelled for sample in ref][: limit or None]
    identity = identity_of_labels(run, config, inputs, method, samples)
    writing = partial(disk_errors, folder, "the labels", "those written are safe")
    with writing():
        folder.mkdir(parents=True, exist_ok=True)
        clean_partials(folder)
        annotations = take_over(begun, identity, samples, batch=batch, limit=limit)
    fuses = config.method != "l2l" or config.l2l.use_spm  # else the prior is shown to the network alone
    num_batches = -(-len(samples) // batch)
    todo = range(-(-len(annotations) // batch), num_batches)
    if todo:
        source = inputs.source(_plan(config, batch), Tokenizer(config.segmentor))
        parts = iterate(
            _Reader(source, samples, batch),
            todo,
            workers=config.runtime.workers,
            prefetch=config.runtime.prefetch,
        )
        with torch.no_grad(), writing(), begun.open("ab") as file:
            for part in progress(parts, num_batches, "labels", quiet, unit="batch", initial=todo.start):
                part = to_device(part, device)
                pseudo = method.pseudo(networks, part)
                made = [
                    {"id": len(annotations) + 1 + index, **_annotation(pseudo, part, index, fuses)}
                    for index in range(len(pseudo.samples))
                ]
                append(file, made)
                annotations += made
    _link_images(links)
    info = {"run": run.name, "method": config.method, "seed": config.seed}
    with writing():
        _write(folder, config, samples, annotations, info)
        remove_synced(begun)
    return {"folder": str(folder), **_summary(annotations)}


def _plan(config: TrainConfig, batch: int) -> BatchPlan:
    """Batches of a run in which nothing is drawn: no flip, no strong view."""
    return replace(
        batch_plan(config),
        batch_unlabelled=batch,
        accumulation=1,
        cache_mib=0,
        weak=WeakConfig(flip_probability=0.0),
        strong=StrongConfig(operations=0),
        text=StrongTextConfig(table=config.text.table, candidates=0),
    )


class _Reader:
    """The key-th `batch` samples, without noise; picklable."""

    def __init__(self, source: BatchSource, samples: Sequence[Sample], batch: int) -> None:
        self.source, self.samples, self.batch = source, samples, batch

    def __call__(self, key: int) -> UnlabelledPart:
        part = self.source.unlabelled_of(self.samples[key * self.batch : (key + 1) * self.batch])
        return replace(part, noise_B2=torch.zeros_like(part.noise_B2))


def _annotation(pseudo: Pseudo, part: UnlabelledPart, index: int, fuses: bool) -> dict[str, Any]:
    """The COCO record of one sample but for its id; `fuses` says whether the method's target is made of the prior."""
    sample = pseudo.samples[index]
    prob_hw = upsample(pseudo.target_B1HW[index].float().cpu(), (sample.height, sample.width)).numpy()
    mask_hw = prob_hw >= 0.5
    ignored_HW = (pseudo.label_BHW[index] == IGNORE).cpu().numpy()
    ignored_hw = resize_mask_nearest(ignored_HW, mask_hw.shape)
    x0, y0, x1, y1 = mask_box_xyxy_px(mask_hw).tolist()
    fused = (
        fuses
        and pseudo.prior_B1HW is not None
        and part.has_prior_B is not None
        and bool(part.has_prior_B[index])
    )
    return {
        "image_id": sample.image_id,
        "category_id": CATEGORY["id"],
        "segmentation": encode_rle(mask_hw),
        "area": int(mask_hw.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
        "score": float(prob_hw[mask_hw].mean()) if mask_hw.any() else 0.0,
        "accepted_area": int((~ignored_hw).sum()),
        "ignored_area": int(ignored_hw.sum()),
        "ignored": encode_rle(ignored_hw),
        "source": "prediction+prior" if fused else "prediction",
        "sample_id": sample.sample_id,
        "ref_id": sample.ref_id,
        "expression": sample.expression,
    }


def _ref(sample: Sample, ann_id: int) -> dict[str, Any]:
    sentence = {
        "sent_id": sample.sent_id,
        "sent": sample.expression,
        "raw": sample.expression,
        "tokens": sample.expression.split(),
    }
    return {
        "ref_id": sample.sent_id,
        "ann_id": ann_id,
        "image_id": sample.image_id,
        "category_id": CATEGORY["id"],
        "split": "train",
        "file_name": sample.file_name,
        "sent_ids": [sample.sent_id],
        "sentences": [sentence],
    }


def _write(
    folder: Path,
    config: TrainConfig,
    samples: Sequence[Sample],
    annotations: Sequence[dict[str, Any]],
    info: dict[str, Any],
) -> None:
    """Both files, each under its name only when it is whole; `instances.json` last."""
    images = {
        s.image_id: {"id": s.image_id, "file_name": s.file_name, "height": s.height, "width": s.width}
        for s in samples
    }
    document = {
        "info": {"description": "pseudo-labels, not drawn by anybody", **info},
        "images": list(images.values()),
        "annotations": list(annotations),
        "categories": [CATEGORY],
    }
    refs = pickle.dumps(
        [_ref(sample, row["id"]) for sample, row in zip(samples, annotations, strict=True)], protocol=2
    )
    files = {f"refs({config.data.split_by}).p": refs, "instances.json": json.dumps(document).encode()}
    for name, data in files.items():
        publish_file(folder / name, data)


def _image_links(out: Path, config: TrainConfig) -> dict[Path, Path]:
    """What is linked to where, so that the labels are a data set as the one they are of: loose images, a pack, or both.

    A JSONL file names its images from its own folder, a REFER layout from `images/` below its root.
    """
    root = Path(config.data.root)
    top = root.parent if config.data.is_jsonl else root
    loose = top if config.data.is_jsonl else top / "images"
    places = {out / "images": loose, out / PACK_NAME: top / PACK_NAME}
    return {link: target.resolve() for link, target in places.items() if target.exists()}


def _require_own_images(links: dict[Path, Path]) -> None:
    """Refuse links to the images of another data set, or to where they no longer are."""
    for link, target in links.items():
        if link.is_symlink() and link.resolve() != target:
            raise DataError(
                f"{link}: leads to {link.resolve()}, not to {target}; remove it, or choose another folder"
            )


def _link_images(links: dict[Path, Path]) -> None:
    """Images are not copied; what is there already under such a name is left as it is."""
    for link, target in links.items():
        if not link.exists():
            link.symlink_to(target, target_is_directory=target.is_dir())


def _summary(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    area = sum(row["accepted_area"] + row["ignored_area"] for row in annotations)
    return {
        "num": len(annotations),
        "sources": dict(Counter(row["source"] for row in annotations)),
        "empty_share": float(np.mean([row["area"] == 0 for row in annotations])),
        "ignored_share": sum(row["ignored_area"] for row in annotations) / area,
        "mean_score": float(np.mean([row["score"] for row in annotations])),
    }
