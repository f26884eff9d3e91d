"""Train the embedded model on drawn scenes and write it to a Hugging Face folder.

    python -m stage1_priors.tiny.train [--minutes M] [--out DIR]

Two single-threaded gloo ranks share each batch (faster than two threads on two cores). The default is a fixed number
of steps, so a faster machine gives the same model sooner; `--minutes` anneals over a span of time instead. A killed
run continues from `OUT.training/checkpoint.pt` when the same command is given again.

Left out on purpose: any mask, any picture of RefShapes, any GPU.
"""

import dataclasses
import os
import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from shared.errors import DataError
from shared.muon import Muon, MuonConfig, set_learning_rate, split_parameters
from shared.retraining import parse_arguments, training_folder
from shared.seeding import seed_of
from stage1_priors.tiny import WEIGHTS_DIR
from stage1_priors.tiny.data import ask, collate
from stage1_priors.tiny.export import export, write_record
from stage1_priors.tiny.heads import LossConfig, TrainingHeads, losses
from stage1_priors.tiny.model import TinyModelConfig, build_model
from stage1_priors.tiny.score import Score, held_out_score
from stage1_priors.tiny.tokenizer import IMAGE_SIZE_PX, build_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe."""

    seed: int = 0
    """Seed of the scenes and of the initial weights."""
    num_steps: int = 1500
    """Optimizer steps; the schedule ends there."""
    minutes: float | None = None
    """Anneal over this much wall time instead of `num_steps`."""
    num_ranks: int = 2
    """Single-threaded processes."""
    scenes_per_rank: int = 16
    """Scenes in a rank's share of a step."""
    questions_per_scene: int = 4
    """Expressions that share one image prefix."""
    warmup: float = 0.02
    """Share of the run over which the learning rates rise."""
    decay_from: float = 0.35
    """Share of the run after which they fall linearly to zero."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    log_every: int = 20
    """Steps between log lines."""
    save_every: int = 100
    """Steps between checkpoints."""
    monitor_every: int = 300
    """Steps between quick held-out scores."""
    monitor_scenes: int = 192
    """Scenes of a quick score."""
    final_scenes: int = 1500
    """Scenes of the final held-out score."""
    model: TinyModelConfig = field(default_factory=TinyModelConfig)
    """Size of the model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the losses."""
    muon: MuonConfig = field(default_factory=lambda: MuonConfig(lr=4e-3, update_rms=0.2))
    """Optimizer."""

    def __post_init__(self) -> None:
        """Refuse an empty run."""
        if self.num_steps < 1 or (self.minutes is not None and self.minutes <= 0):
            raise DataError(f"num_steps {self.num_steps} and minutes {self.minutes} must be positive")


def lr_scale(progress: float, config: TrainConfig) -> float:
    """Learning rate over its peak at `progress` in [0, 1]: rise, plateau, linear fall to zero."""
    rise = min(1.0, progress / config.warmup) if config.warmup else 1.0
    return max(0.0, min(rise, (1 - progress) / (1 - config.decay_from), 1.0))


def sigma_px(progress: float, loss: LossConfig) -> float:
    """Softness of the coordinate targets at `progress` in [0, 1], geometric."""
    return loss.sigma_start * (loss.sigma_end / loss.sigma_start) ** min(progress, 1.0)


class Trainer:
    """What a rank holds: model, heads, optimizer, and how far the run is."""

    def __init__(self, config: TrainConfig, rank: int, folder: Path) -> None:
        """Build everything, and continue from a checkpoint in `folder` if there is one."""
        self.config, self.rank, self.folder = config, rank, folder
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        seed = seed_of("mllm weights", config.seed)
        self.model: Qwen2_5_VLForConditionalGeneration = build_model(config.model, self.tokenizer, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = TrainingHeads(config.model.hidden)
        self.both = nn.ModuleList([self.model, self.heads])
        self.parameters = list(self.both.parameters())
        self.optimizer = Muon(*split_parameters(self.both), config.muon)
        numbers = [str(number) for number in range(IMAGE_SIZE_PX + 1)]
        self.number_ids = torch.tensor(self.tokenizer.convert_tokens_to_ids(numbers))
        self.step, self.progress, self.seconds = 0, 0.0, 0.0
        if self._checkpoint.exists():
            self._load()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _load(self) -> None:
        saved = torch.load(self._checkpoint, weights_only=True)
        self.both.load_state_dict(saved["modules"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.progress, self.seconds = saved["step"], saved["progress"], saved["seconds"]

    def save(self) -> None:
        """Publish a checkpoint by rename."""
        partial = self._checkpoint.with_suffix(".partial")
        state = {"modules": self.both.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"step": self.step, "progress": self.progress, "seconds": self.seconds}, partial)
        partial.replace(self._checkpoint)

    def train_step(self) -> dict[str, float]:
        """One optimizer step on fresh scenes; returns this rank's parts of the loss."""
        config, started = self.config, time.monotonic()
        first = (self.step * config.num_ranks + self.rank) * config.scenes_per_rank
        scenes = [
            ask("mllm", config.seed, first + offset, config.questions_per_scene)
            for offset in range(config.scenes_per_rank)
        ]
        batch = collate(scenes, self.tokenizer)
        sigma = sigma_px(self.progress, config.loss)
        for parameter in self.parameters:
            parameter.grad = None
        loss, parts = losses(self.model, self.heads, batch, self.number_ids, sigma, config.loss)
        loss.backward()
        self._average_gradients()
        nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        set_learning_rate(self.optimizer, lr_scale(self.progress, config))
        self.optimizer.step()
        self.step += 1
        self.seconds += time.monotonic() - started
        self.progress = self._agree_on_progress()
        return parts

    def _average_gradients(self) -> None:
        if self.config.num_ranks == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.config.num_ranks
        for parameter, piece in zip(
            self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True
        ):
            parameter.grad = piece.view_as(parameter)

    def _agree_on_progress(self) -> float:
        """Share of the run that is over, the same on every rank."""
        if self.config.minutes is None:
            return self.step / self.config.num_steps
        progress = torch.tensor(self.seconds / (60 * self.config.minutes), dtype=torch.float64)
        if self.config.num_ranks > 1:
            dist.broadcast(progress, src=0)
        return float(progress)


def run_rank(rank: int, config: TrainConfig, folder: Path, port: int) -> None:
    """One rank of a run; rank 0 logs, saves and monitors."""
    torch.set_num_threads(1)
    if config.num_ranks > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=config.num_ranks)
    trainer = Trainer(config, rank, folder)
    while trainer.progress < 1:
        parts = trainer.train_step()
        if rank:
            continue
        step = trainer.step
        if step % config.log_every == 0 or trainer.progress >= 1:
            values = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            rate = step * config.num_ranks * config.scenes_per_rank / trainer.seconds
            print(f"step {step} ({trainer.progress:.1%}, {rate:.0f} scenes/s) {values}", flush=True)
        if step % config.monitor_every == 0:
            score = held_out_score(trainer.model, trainer.tokenizer, config.monitor_scenes)
            print(f"step {step} held-out {_show(score)}", flush=True)
        if step % config.save_every == 0 or trainer.progress >= 1:
            trainer.save()
    if config.num_ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _show(score: Score) -> str:
    kinds = " ".join(f"{kind} {value:.3f}" for kind, value in score.accuracy_by_kind.items())
    means = f"acc@0.5 {score.accuracy:.3f} mIoU {score.mean_iou:.3f} parsed {score.parse_rate:.3f}"
    return f"{means} | {kinds} ({score.num})"


def train(config: TrainConfig, out: Path) -> Score:
    """Train, export to `out`, score the exported folder, and write `training.json` beside the weights.

    Raises:
        DataError: A checkpoint of another recipe lies in the way.
    """
    folder, recipe = training_folder(config, out)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.num_ranks == 1:
        run_rank(0, config, folder, 0)
    else:
        torch.multiprocessing.spawn(run_rank, (config, folder, _free_port()), nprocs=config.num_ranks)
    trainer = Trainer(config, 0, folder)
    export(trainer.model, trainer.tokenizer, out)
    exported = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    score = held_out_score(exported, trainer.tokenizer, config.final_scenes)
    record: dict[str, Any] = {
        "recipe": recipe,
        "steps": trainer.step,
        "scenes": trainer.step * config.num_ranks * config.scenes_per_rank,
        "training_minutes": round(trainer.seconds / 60, 1),
        "machine": f"{config.num_ranks} single-threaded processes, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "parameters": exported.num_parameters(),
        "held_out": dataclasses.asdict(score),
    }
    write_record(out, record)
    shutil.rmtree(folder)  # the run is over: the same command trains anew
    print(f"{out}: held-out {_show(score)}", flush=True)
    return score


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Command line."""
    arguments = parse_arguments(
        "Train the embedded Qwen2.5-VL on drawn scenes.", TrainConfig.num_steps, WEIGHTS_DIR
    )
    train(TrainConfig(minutes=arguments.minutes, num_steps=arguments.steps), arguments.out)


if __name__ == "__main__":
    main()
