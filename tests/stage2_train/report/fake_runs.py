"""A drawn data set, a prior store and run directories as training and evaluation would leave them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.masks import encode_rle, mask_box_xyxy_px, resize_mask_nearest
from shared.metrics import SegmentationMeter, iou_counts
from shared.refer import load_refer
from shared.seeding import rng
from shared.store.schema import STATIC_PRIOR_FIELDS, encode_text_rows, prior_fields
from shared.store.writer import create_store, write_shard
from shared.synth.refshapes import write_refshapes
from shared.types import STATUS_CODES, AnswerStatus, Sample

GRID = 32
PASSED = {"mode": "refuse", "passed": True, "scenes": 16, "with_box": 16, "mean_iou": 0.81}
FAILED = PASSED | {
    "mode": "warn",
    "passed": False,
    "with_box": 5,
    "mean_iou": 0.03,
    "other_frame": "0 to 1000",
}
HOSTILE = "<script>alert(1)</script> & \"the\" 'red' </script><img src=x onerror=alert(2)>"


@dataclass(frozen=True, kw_only=True)
class World:
    """Folders every fake run refers to."""

    data: Path
    store: Path


def write_world(root: Path, images: int = 60) -> World:
    """A small data set with a prior for every sentence."""
    write_refshapes(root / "data", num_train_images=images, progress=False)
    made = World(data=root / "data", store=root / "store")
    write_store(made, canary=PASSED)
    return made


def write_store(
    world: World,
    *,
    path: Path | None = None,
    canary: Any = None,
    refuse_share: float = 0.05,
    shard_info: dict | None = None,
) -> Path:
    """A store whose soft box is the true box, wrong for one sentence in five, absent for `refuse_share`."""
    dataset = load_refer(world.data, "refshapes", "unc")
    samples = dataset.samples()
    num, path = len(samples), path or world.store
    draws = rng("fake store")
    status = np.where(draws.random(num) < refuse_share, AnswerStatus.NO_BOX, AnswerStatus.OK)
    soft = np.zeros((num, GRID, GRID), np.uint8)
    boxes = np.full((num, 4), np.nan, np.float32)
    for row, sample in enumerate(samples):
        if status[row] == AnswerStatus.OK:
            boxes[row] = mask_box_xyxy_px(dataset.mask(sample)) / np.array([sample.width, sample.height] * 2)
            box = boxes[row] if draws.random() < 0.8 else np.array([0.1, 0.1, 0.4, 0.4])
            centre = (np.arange(GRID) + 0.5) / GRID
            inside = [
                1 / (1 + np.exp((np.abs(centre - (lo + hi) / 2) - (hi - lo) / 2) * 60))
                for lo, hi in (box[[1, 3]], box[[0, 2]])
            ]
            soft[row] = np.round(255 * inside[0][:, None] * inside[1][None])
            boxes[row] = box
    names = sorted({sample.split for sample in samples})
    static = {
        "sample_id": encode_text_rows([s.sample_id for s in samples], 96),
        "expression": encode_text_rows([s.expression for s in samples], 256),
        "image_id": np.array([s.image_id for s in samples], np.int64),
        "split": np.array([names.index(s.split) for s in samples], np.uint8),
        "image_hw": np.array([[s.height, s.width] for s in samples], np.int32),
    }
    assert set(static) == set(STATIC_PRIOR_FIELDS)
    answers = [
        '{"bbox_2d": [12, 20, 48, 60]}' if s == AnswerStatus.OK else "I see <b>nothing</b>." for s in status
    ]
    rest = {
        "raw_text": encode_text_rows(answers, 512),
        "status": np.array([STATUS_CODES[AnswerStatus(s)] for s in status], np.uint8),
        "proposal": soft,
        "box_xyxy_norm": boxes,
        "box_raw_xyxy": boxes * 112,
        "processed_hw": np.full((num, 2), 112, np.int32),
        "confidence": np.where(status == AnswerStatus.OK, -0.21, np.nan).astype(np.float32),
        "edge_logprob": np.full((num, 4), -0.2, np.float32),
        "num_tokens": np.full(num, 12, np.int32),
        "proposer_iou": np.full(num, np.nan, np.float32),
    }
    attrs = {
        "fingerprint": "feedc0ffee12345",
        "data": {"dataset": "refshapes", "split_by": "unc"},
        "splits": names,
        "grid": GRID,
    }
    if canary is not None:
        attrs["canary"] = canary
    create_store(path, num_rows=num, fields=prior_fields(GRID), attrs=attrs, static=static)
    for shard in range(-(-num // 512)):
        part = {name: values[shard * 512 : (shard + 1) * 512] for name, values in rest.items()}
        write_shard(path, shard, part, shard_info or {})
    return path


def write_run(
    path: Path,
    world: World,
    *,
    method: str = "l2l",
    quality: float = 0.8,
    seed: int = 22,
    splits: tuple[str, ...] = ("val",),
    expression: str | None = None,
    steps: int = 400,
    store: Path | None = None,
) -> Path:
    """A finished run that is right about a share `quality` of the sentences."""
    (path / "eval").mkdir(parents=True)
    dataset = load_refer(world.data, "refshapes", "unc")
    with_prior = method in ("l2l", "mllm_blend")
    config = {
        "recipe": f"embedded-{method}",
        "overrides": ["fraction=0.05", "data.root=a folder; rm -rf $HOME"],
        "config": {
            "data": {"root": str(world.data), "dataset": "refshapes", "split_by": "unc"},
            "method": method,
            "steps": steps,
            "optim": {"lr": 5e-4 if method == "l2l" else 1e-3},
        },
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "store": {"path": str(store or world.store), "fingerprint": "feedc0ffee12345"}
        if with_prior
        else None,
        "method": method,
        "seed": seed,
        "fraction": 0.05,
        "global_batch": {"labelled": 16, "unlabelled": 16},
    }
    split = {
        "image_ids": [1, 2, 3],
        "hash": "abc123",
        "fraction": 0.05,
        "seed": 0,
        "num_refs": 7,
        "num_sentences": 15,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "split.json").write_text(json.dumps(split))
    (path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in _metrics(method, seed, steps, quality))
    )
    for name in splits:
        write_eval(path, dataset, name, quality, seed, expression, with_prior)
    (path / "done.json").write_text(json.dumps({"step": steps, "seconds": 83.4, "metrics": {}}))
    return path


def write_eval(
    path: Path, dataset: Any, split: str, quality: float, seed: int, expression: str | None, prior: bool
) -> None:
    """Both evaluation files of one split, consistent with each other."""
    meters = {name: SegmentationMeter() for name in ("model", "original", "prior")}
    lines = []
    for index, sample in enumerate(dataset.samples(split)):
        truth_HW = dataset.mask(sample)
        pred_HW = fake_prediction(sample, truth_HW, quality, seed)
        small = (resize_mask_nearest(pred_HW, (64, 64)), resize_mask_nearest(truth_HW, (64, 64)))
        counts = {"model": iou_counts(*small), "original": iou_counts(pred_HW, truth_HW)}
        row = {"sample_id": sample.sample_id, "expression": sample.expression, "image_id": sample.image_id}
        row |= {"ref_id": sample.ref_id, "file_name": sample.file_name, "pred_rle": encode_rle(pred_HW)}
        if expression is not None and index % 2 == 0:
            row["expression"] = expression
        for name, (inter, union) in counts.items():
            meters[name].update(sample.sample_id, inter, union)
            row |= {
                f"inter_{name}": int(inter),
                f"union_{name}": int(union),
                f"iou_{name}": inter / max(union, 1),
            }
        prior_HW = fake_prediction(sample, truth_HW, 0.7, 999)
        inter, union = iou_counts(prior_HW, truth_HW)
        meters["prior"].update(sample.sample_id, inter, union)
        if prior:
            row |= {"prior_iou_original": inter / max(union, 1), "prior_inter_original": inter}
            row["prior_union_original"] = union
        lines.append(json.dumps(row) + "\n")
    scores = meters["prior"].result()
    summary = {"split": split, "model": meters["model"].result(), "original": meters["original"].result()}
    summary |= {
        "prior": {"model": scores, "original": scores} if prior else None,
        "num": len(lines),
        "resolution": [64, 64],
        "limit": 0,
    }
    (path / "eval" / f"{split}.json").write_text(json.dumps(summary))
    (path / "eval" / f"{split}.jsonl").write_text("".join(lines))


def fake_prediction(sample: Sample, truth_HW: np.ndarray, quality: float, seed: int) -> np.ndarray:
    """The true mask shifted by a few pixels, or, with probability 1 - quality, somewhere else."""
    draws = rng("fake prediction", seed, sample.sample_id)
    far = draws.random() > quality
    shift = draws.integers(40, 80, size=2) if far else draws.integers(-4, 5, size=2)
    return np.roll(truth_HW, shift, axis=(0, 1))


def _metrics(method: str, seed: int, steps: int, quality: float) -> list[dict]:
    draws = rng("fake metrics", method, seed)
    rows: list[dict] = []
    for step in range(0, steps, 2):
        done = step / steps
        noise = float(draws.normal(0, 0.03))
        row = {
            "step": step,
            "kind": "train",
            "loss": 1.2 - done + noise,
            "labelled_loss": 0.7 * (1.1 - done) + noise,
        }
        row |= {"lr_factor": 1 - done, "grad_norm": 2.0 + noise}
        if method != "supervised":
            row |= {"unlabelled_loss": 0.5 * (1.2 - done) + noise, "coverage": 0.8 + 0.15 * done + noise / 5}
            row |= {
                "weak_iou": 0.2 + 0.5 * done + noise,
                "selected_accuracy": 0.93 + 0.05 * done,
                "foreground_recall": 0.4 + 0.4 * done,
            }
        if method == "l2l":
            row |= {
                "prior_iou": 0.6 + noise,
                "fused_iou": 0.55 + 0.3 * done + noise,
                "reward": 0.02 + noise / 3,
                "disputed": 0.05 - 0.03 * done,
                "disputed_prior_right": 0.03 - 0.02 * done,
                "disputed_taught": 0.04 - 0.03 * done,
                "disputed_taught_right": 0.025 - 0.02 * done,
            }
            row |= {"tau_fg": 0.7 + 0.08 * done, "tau_bg": 0.2 - 0.06 * done}
        rows.append(row)
        if step % 40 == 0:
            rows.append(
                {
                    "step": step,
                    "kind": "val",
                    "oiou_model": quality * done**0.4,
                    "oiou_original": quality * done**0.4,
                    "num": 30,
                }
            )
    rows.insert(5, {"step": 8, "kind": "resume"})
    return rows
