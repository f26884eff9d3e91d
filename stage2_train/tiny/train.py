"""Pretrain the embedded backbone: both towers, word attention and decoder, on drawn scenes and their expressions.

    python -m stage2_train.tiny.train

Ranks are single-threaded gloo processes (two beat one process of two threads on two cores). Each holds its own half of
the scenes; gradients are averaged; each matrix is updated by one rank (Muon's orthogonalisation is the same work on
every rank otherwise) and shared. Weights are written every `save_seconds` and at the end, bfloat16.

Left out: validation by any RefShapes data set; the held-out scenes are drawn from the same keys' own branch.
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from shared.muon import Muon, MuonConfig, set_learning_rate, split_parameters
from shared.seeding import rng
from shared.store.publish import publishing
from stage2_train.backbones.images import normalise_image
from stage2_train.segmentor import WEIGHTS_NAME, ReferringSegmentor, build_segmentor
from stage2_train.segmentor_config import EMBEDDED_FOLDER, SegmentorConfig, tiny_config
from stage2_train.segmentor_weights import save_segmentor
from stage2_train.text import Tokenizer
from stage2_train.tiny.heads import LossWeights, TrainingHeads, mask_loss, select_loss
from stage2_train.tiny.pool import Pool, draw_batch, draw_pool
from stage2_train.tiny.vocabulary import write_tokenizer


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    out: Path
    """Folder for the weights, the tokenizer and `pretraining.json`."""
    steps: int = 3000
    """Optimizer steps."""
    scenes: int = 24_000
    """Scenes drawn, over all ranks."""
    images: int = 8
    """Images of a rank's batch (B)."""
    phrases: int = 4
    """Expressions of each image (R)."""
    muon: MuonConfig = field(default_factory=lambda: MuonConfig(lr=0.006, adam_lr=2e-3))
    """Optimizer."""
    warmup: float = 0.02
    """Share of the steps with a rising rate."""
    decay: float = 0.7
    """Share of the steps, at the end, with a rate falling linearly to 0."""
    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses."""
    held_out: int = 300
    """Scenes of the final measurement, 4 expressions each."""
    save_seconds: float = 180.0
    """Time between writings."""
    log_every: int = 50
    """Steps between lines of the log."""
    seed: int = 0
    """Key of every draw."""
    ranks: int = 2
    """Processes."""


def rate_scale(step: int, config: PretrainConfig) -> float:
    """Trapezoidal schedule: linear rise, flat, linear fall."""
    done = step / config.steps
    return min(1.0, (step + 1) / max(1.0, config.warmup * config.steps), (1.0 - done) / config.decay)


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """Replace every gradient by its mean over the ranks (missing ones count as zero)."""
    if ranks == 1:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= ranks
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)


def owners(matrices: list[nn.Parameter], ranks: int) -> list[int]:
    """A rank for each matrix, so that the ranks' orthogonalisation work is about equal (greedy, largest first)."""
    work = [min(p.shape[0], p[0].numel()) * p.numel() for p in matrices]
    load, owner = [0] * ranks, [0] * len(matrices)
    for index in sorted(range(len(matrices)), key=lambda i: (-work[i], i)):
        owner[index] = load.index(min(load))
        load[owner[index]] += work[index]
    return owner


class SharedMuon:
    """Muon whose matrices are divided among the ranks; vectors are updated everywhere alike."""

    def __init__(self, module: nn.Module, config: MuonConfig, rank: int, ranks: int) -> None:
        """Divide the matrices of `module`."""
        self.matrices, others = split_parameters(
            module, adam_names=("embed", "classify", "heads", "relative_position")
        )
        self.parameters = [*self.matrices, *others]
        self.ranks = ranks
        self.mine = [owner == rank for owner in owners(self.matrices, ranks)]
        self.optimizer = Muon(
            [p for p, mine in zip(self.matrices, self.mine, strict=True) if mine], others, config
        )

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Average gradients, update at `scale` times the rates, share the matrices."""
        average_gradients(self.parameters, self.ranks)
        set_learning_rate(self.optimizer, scale)
        self.optimizer.step()
        if self.ranks > 1:
            pairs = zip(self.matrices, self.mine, strict=True)
            flat = torch.cat([(p if mine else torch.zeros_like(p)).flatten() for p, mine in pairs])
            dist.all_reduce(flat)
            for parameter, piece in zip(
                self.matrices, flat.split([p.numel() for p in self.matrices]), strict=True
            ):
                parameter.copy_(piece.view_as(parameter))


def batch_loss(
    model: ReferringSegmentor,
    heads: TrainingHeads,
    tokenizer: Tokenizer,
    pool: Pool,
    config: PretrainConfig,
    generator: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Total loss of one drawn batch, and its parts."""
    batch = draw_batch(pool, config.images, config.phrases, generator)
    ids_PT, token_mask_PT = tokenizer(batch.texts)
    mask_PSS = torch.from_numpy(batch.mask_PSS).float()
    object_BSS, wanted_P = torch.from_numpy(batch.object_BSS).long(), torch.from_numpy(batch.wanted_P)
    # bfloat16 products: a quarter to a third faster on a CPU that has them.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = model.features(
            normalise_image(torch.from_numpy(batch.image_BSS3)), ids_PT, token_mask_PT, with_visual=True
        )
        logit_P2hw = model.decoder(maps.read)
        stages, choice, attributes = heads(
            maps, mask_PSS, object_BSS, torch.from_numpy(batch.attributes_BK4).long(), wanted_P
        )
    logit_P2hw = logit_P2hw.float()
    logit_P2SS = F.interpolate(logit_P2hw, size=mask_PSS.shape[-2:], mode="bilinear", align_corners=True)
    ce, dice = mask_loss(logit_P2SS, mask_PSS)
    margin_Phw = logit_P2hw[:, 1] - logit_P2hw[:, 0]
    select = 0.5 * (choice + select_loss(margin_Phw, object_BSS, wanted_P))
    weights = config.weights
    loss = weights.ce * ce + weights.dice * dice + weights.stages * stages
    loss = loss + weights.select * select + weights.attributes * attributes
    parts = {"ce": ce, "dice": dice, "stages": stages, "select": select, "attributes": attributes}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


@torch.no_grad()
def measure(
    model: ReferringSegmentor, tokenizer: Tokenizer, pool: Pool, num_phrases: int = 4
) -> dict[str, float]:
    """oIoU, mIoU and share of IoU >= 0.5 on a pool, at the model's resolution; mIoU also by kind of expression."""
    model.eval()
    inter, union, iou, kinds = 0, 0, [], []
    for start in range(0, len(pool), 25):
        part = Pool(
            image_NSS3=pool.image_NSS3[start : start + 25],
            object_NSS=pool.object_NSS[start : start + 25],
            attributes_NK4=pool.attributes_NK4[start : start + 25],
            phrases=pool.phrases[start : start + 25],
        )
        batch = draw_batch(part, len(part), num_phrases, rng("backbone", "measure", start))
        image_B3SS = normalise_image(torch.from_numpy(batch.image_BSS3))
        found_PSS = model(image_B3SS, *tokenizer(batch.texts)).argmax(dim=1).numpy().astype(bool)
        inter_P = (found_PSS & batch.mask_PSS).sum(axis=(1, 2))
        union_P = (found_PSS | batch.mask_PSS).sum(axis=(1, 2))
        inter, union = inter + int(inter_P.sum()), union + int(union_P.sum())
        iou += list(inter_P / np.maximum(union_P, 1))
        kinds += batch.kinds
    model.train()
    iou_P, kinds_P = np.array(iou), np.array(kinds)
    result = {"oiou": inter / union, "miou": float(iou_P.mean()), "pr@0.5": float((iou_P >= 0.5).mean())}
    by_kind = {f"miou/{kind}": float(iou_P[kinds_P == kind].mean()) for kind in sorted(set(kinds))}
    return {name: round(value, 4) for name, value in {**result, **by_kind}.items()}


def write(model: ReferringSegmentor, config: PretrainConfig, record: dict[str, object]) -> None:
    """Publish weights (by rename) and what is known about them."""
    config.out.mkdir(parents=True, exist_ok=True)
    with publishing(config.out / WEIGHTS_NAME) as partial:
        save_segmentor(model, partial, torch.bfloat16)
    (config.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def pretrain_rank(rank: int, config: PretrainConfig, port: int) -> None:
    """The loop of one rank; rank 0 logs, writes and measures."""
    torch.set_num_threads(1 if config.ranks > 1 else 2)
    if config.ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=config.ranks)
    segmentor: SegmentorConfig = tiny_config(weights=None)
    if rank == 0:
        write_tokenizer(config.out)
    if config.ranks > 1:
        dist.barrier()
    torch.manual_seed(config.seed)
    model, heads = build_segmentor(segmentor), TrainingHeads(segmentor.vision)
    tokenizer = Tokenizer(segmentor)
    began = time.monotonic()
    size_px = segmentor.vision.image_size
    pool = draw_pool(range(rank, config.scenes, config.ranks), size_px, config.seed, "train")
    held_out = draw_pool(range(config.held_out), size_px, config.seed, "held out") if rank == 0 else None
    optimizer = SharedMuon(nn.ModuleDict({"model": model, "heads": heads}), config.muon, rank, config.ranks)
    drawn, saved = time.monotonic(), time.monotonic()
    sums: dict[str, float] = {}
    for step in range(config.steps):
        generator = rng("backbone", config.seed, "batch", rank, step)
        loss, parts = batch_loss(model, heads, tokenizer, pool, config, generator)
        for parameter in optimizer.parameters:
            parameter.grad = None
        loss.backward()
        optimizer.step(rate_scale(step, config))
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(f"step {step}: the loss is {float(loss.detach())}")
        sums = {name: sums.get(name, 0.0) + value for name, value in parts.items()}
        if rank == 0 and (step + 1) % config.log_every == 0:
            line = {name: round(value / config.log_every, 4) for name, value in sums.items()}
            seconds = round(time.monotonic() - drawn, 1)
            print(json.dumps({"step": step + 1, "seconds": seconds, **line}), flush=True)
        if (step + 1) % config.log_every == 0:
            sums = {}
        if held_out is not None and time.monotonic() - saved > config.save_seconds:
            scores = measure(model, tokenizer, held_out)
            print(json.dumps({"step": step + 1, "held out": scores}), flush=True)
            write(model, config, {"step": step + 1, "of": config.steps, "held_out": scores})
            saved = time.monotonic()
    if held_out is not None:
        scores = measure(model, tokenizer, held_out)
        pairs = config.steps * config.images * config.phrases * config.ranks
        record = {
            "step": config.steps,
            "of": config.steps,
            "pairs": pairs,
            "scenes": config.scenes,
            "seed": config.seed,
            "drawing_seconds": round(drawn - began, 1),
            "training_seconds": round(time.monotonic() - drawn, 1),
            "held_out": scores,
        }
        print(json.dumps(record), flush=True)
        write(model, config, record)
    if config.ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def pretrain(config: PretrainConfig, port: int = 29517) -> None:
    """Start the ranks and wait for them."""
    if config.ranks == 1:
        pretrain_rank(0, config, port)
    else:
        torch.multiprocessing.spawn(pretrain_rank, args=(config, port), nprocs=config.ranks)  # type: ignore[no-untyped-call]


def main() -> None:
    """Read the few options that a rerun needs."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded backbone on drawn scenes.")
    default = PretrainConfig(out=Path("."))
    parser.add_argument("--out", type=Path, default=EMBEDDED_FOLDER, help="folder to write")
    for name in ("steps", "scenes", "images", "phrases", "held_out", "seed", "ranks"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    parser.add_argument("--lr", type=float, default=default.muon.lr)
    parser.add_argument("--adam-lr", type=float, default=default.muon.adam_lr)
    options = vars(parser.parse_args())
    muon = MuonConfig(lr=options.pop("lr"), adam_lr=options.pop("adam_lr"))
    pretrain(PretrainConfig(muon=muon, **options))


if __name__ == "__main__":
    main()
