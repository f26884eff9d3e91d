"""Train the embedded mask proposer on drawn scenes and write it to a Hugging Face folder.

    python -m stage1_priors.tiny_sam.train [--minutes M] [--out DIR]

One thread; seconds are its own processor time, so that other work on the machine does not count. The default is a fixed
number of steps, so a faster machine gives the same model sooner; `--minutes` anneals over a span of time instead. A
checkpoint is written every `save_seconds`; a killed run continues from `OUT.training/checkpoint.pt` when the same
command is given again.

The first steps see boxes alone, without any image. Most steps train the single-mask output, every fourth the three
others (the best of them, as SAM does). Left out on purpose: point and mask prompts, the score of an object's presence
(there always is one), any picture of RefShapes.
"""

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Sam2Model

from shared.errors import DataError
from shared.muon import Muon, MuonConfig, set_learning_rate, split_parameters
from shared.retraining import parse_arguments, training_folder
from shared.seeding import seed_of
from stage1_priors.tiny_sam import WEIGHTS_DIR
from stage1_priors.tiny_sam.data import collate, draw_boxed, draw_boxes_alone
from stage1_priors.tiny_sam.export import export, write_record
from stage1_priors.tiny_sam.model import TinySamConfig, build_model, build_processor
from stage1_priors.tiny_sam.score import (
    Score,
    forward,
    forward_blind,
    held_out_score,
    mask_losses,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe."""

    seed: int = 0
    """Seed of the scenes and of the initial weights."""
    num_steps: int = 1500
    """Optimizer steps, the blind ones included; the schedule ends there."""
    minutes: float | None = None
    """Anneal over this much processor time instead of `num_steps`."""
    blind_steps: int = 250
    """First steps, on boxes that are their own masks."""
    blind_boxes: int = 24
    """Boxes of a blind step."""
    scenes: int = 4
    """Scenes of a step."""
    boxes: int = 6
    """Boxes of a scene, which share its encoding."""
    multimask_every: int = 4
    """Every so many steps the three-mask output is trained instead of the single mask."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises."""
    decay_from: float = 0.3
    """Share of the run after which it falls linearly to zero."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    log_every: int = 50
    """Steps between log lines."""
    save_seconds: float = 60.0
    """Time between checkpoints."""
    final_scenes: int = 250
    """Scenes of the final held-out score."""
    model: TinySamConfig = field(default_factory=TinySamConfig)
    """Size of the model."""
    optimizer: MuonConfig = field(default_factory=lambda: MuonConfig(adam_lr=3e-3, weight_decay=0.01))
    """AdamW's part of the optimizer trains everything; Muon was no better on a model this small."""

    def __post_init__(self) -> None:
        """Refuse an empty run."""
        if self.num_steps < 1 or (self.minutes is not None and not self.minutes > 0):
            raise DataError(f"num_steps {self.num_steps} and minutes {self.minutes} must be positive")
        if min(self.scenes, self.boxes) < 1 or self.multimask_every < 2:
            raise DataError(
                f"scenes {self.scenes}, boxes {self.boxes} and multimask_every {self.multimask_every} are too small"
            )


def lr_scale(step: int, progress: float, config: TrainConfig) -> float:
    """Learning rate over its peak: rise over the first steps, plateau, linear fall to zero at `progress` 1."""
    return max(0.0, min((step + 1) / config.warmup_steps, (1 - progress) / (1 - config.decay_from), 1.0))


class Trainer:
    """Model, optimizer, and how far the run is."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        """Build everything, and continue from a checkpoint in `folder` if there is one."""
        self.config, self._checkpoint = config, folder / "checkpoint.pt"
        self.model: Sam2Model = build_model(config.model, seed_of("sam weights", config.seed))
        self.processor = build_processor()
        self.parameters = [parameter for group in split_parameters(self.model) for parameter in group]
        self.optimizer = Muon([], self.parameters, config.optimizer)
        self.step, self.progress, self.seconds = 0, 0.0, 0.0
        if self._checkpoint.exists():
            saved = torch.load(self._checkpoint, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.progress, self.seconds = saved["step"], saved["progress"], saved["seconds"]

    def save(self) -> None:
        """Publish a checkpoint by rename."""
        partial = self._checkpoint.with_suffix(".partial")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"step": self.step, "progress": self.progress, "seconds": self.seconds}, partial)
        partial.replace(self._checkpoint)

    def train_step(self) -> dict[str, float]:
        """One optimizer step on fresh scenes; returns the parts of the loss."""
        config, started = self.config, time.process_time()
        for parameter in self.parameters:
            parameter.grad = None
        loss, parts = self._losses()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], config.clip_norm)
        set_learning_rate(self.optimizer, lr_scale(self.step, self.progress, config))
        self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - started
        whole = config.num_steps if config.minutes is None else 60 * config.minutes
        self.progress = (self.step if config.minutes is None else self.seconds) / whole
        return {name: float(value.detach()) for name, value in parts.items()}

    def _losses(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config = self.config
        multimask = self.step % config.multimask_every == config.multimask_every - 1
        if self.step < config.blind_steps:
            box_1K4, target_1KMM = draw_boxes_alone(config.seed, self.step, config.blind_boxes)
            return mask_losses(*forward_blind(self.model, box_1K4, multimask), target_1KMM)
        first = self.step * config.scenes
        scenes = [
            draw_boxed("sam", config.seed, index, config.boxes)
            for index in range(first, first + config.scenes)
        ]
        batch = collate(scenes, self.processor)
        return mask_losses(*forward(self.model, batch, multimask), batch.target_BKMM)


def run(trainer: Trainer) -> None:
    """Train to the end, with log lines and checkpoints."""
    config, saved, sums = trainer.config, time.monotonic(), dict[str, float]()
    while trainer.progress < 1:
        parts = trainer.train_step()
        sums = {name: sums.get(name, 0.0) + value for name, value in parts.items()}
        if trainer.step % config.log_every == 0:
            values = " ".join(f"{name} {value / config.log_every:.4f}" for name, value in sums.items())
            print(
                f"step {trainer.step} ({trainer.progress:.1%}, {trainer.seconds:.0f} s) {values}", flush=True
            )
            sums = {}
        if time.monotonic() - saved > config.save_seconds:
            trainer.save()
            saved = time.monotonic()
    trainer.save()


def train(config: TrainConfig, out: Path) -> Score:
    """Train, export to `out`, score the exported folder, and write `training.json` beside the weights.

    Raises:
        DataError: A checkpoint of another recipe lies in the way.
    """
    folder, recipe = training_folder(config, out)
    torch.set_num_threads(1)
    trainer = Trainer(config, folder)
    run(trainer)
    export(trainer.model, trainer.processor, out)
    exported = Sam2Model.from_pretrained(out, dtype=torch.float32).eval()
    score = held_out_score(exported, trainer.processor, config.final_scenes)
    record: dict[str, Any] = {
        "recipe": recipe,
        "steps": trainer.step,
        "scenes": (trainer.step - config.blind_steps) * config.scenes,
        "boxes": (trainer.step - config.blind_steps) * config.scenes * config.boxes,
        "training_minutes": round(trainer.seconds / 60, 1),
        "machine": f"one thread, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "parameters": exported.num_parameters(),
        "held_out": dataclasses.asdict(score),
    }
    write_record(out, record)
    shutil.rmtree(folder)  # the run is over: the same command trains anew
    print(f"{out}: held-out mean IoU {json.dumps(record['held_out'])}", flush=True)
    return score


def main() -> None:
    """Command line."""
    arguments = parse_arguments(
        "Train the embedded Sam2Model on drawn scenes.", TrainConfig.num_steps, WEIGHTS_DIR
    )
    train(TrainConfig(minutes=arguments.minutes, num_steps=arguments.steps), arguments.out)


if __name__ == "__main__":
    main()
