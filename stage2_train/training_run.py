"""The steps of one run: training, validation, checkpoints, and the end; a thin shell around `step.train_step`.

Accelerate gives processes, device, clipping and collectives. Gradients are averaged by
`optim.average_gradients`, which says why not by DistributedDataParallel.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.errors import DataError, one_line
from shared.json_files import read_json, write_json
from shared.runlog import METRICS_FILE, has_record, progress, say
from shared.stopping import STOPPED, stop_flag
from shared.store.publish import sync
from stage2_train.alarm import CollapseAlarm
from stage2_train.batch_source import BatchSource
from stage2_train.checkpoint import (
    damaged_checkpoint,
    first_misfit,
    list_checkpoints,
    load_object,
    load_state,
    load_weights,
    save_checkpoint,
    shrink_checkpoint,
)
from stage2_train.config import TrainConfig
from stage2_train.ema import Ema
from stage2_train.hidden_masks import HiddenMasks, with_accuracy
from stage2_train.inputs import Inputs, batch_plan
from stage2_train.loader import iterate
from stage2_train.methods import METHODS
from stage2_train.model_card import write_card
from stage2_train.networks import Networks
from stage2_train.optim import broadcast_state, build_optimizer
from stage2_train.owner import RunOwner
from stage2_train.processes import mean_over_processes, on_any_process, require_same_step, say_emulated
from stage2_train.pseudo_labels import Pseudo
from stage2_train.run_code import code_of
from stage2_train.run_files import export_model
from stage2_train.scoring import score_samples, spaced, summarise
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.split import scorable
from stage2_train.step import StepResult, train_step
from stage2_train.text import Tokenizer
from stage2_train.training_log import training_log


class TrainingRun:
    """Everything alive during a run; one that is made takes up the newest checkpoint of its folder."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        owner: RunOwner,
        accelerator: Accelerator,
        inputs: Inputs,
        model: ReferringSegmentor,
        quiet: bool,
    ) -> None:
        """Build what trains `model`, which is new, and load the newest checkpoint over it.

        Args:
            config: The run.
            out: Its folder, which is this start's.
            owner: This start's claim on it.
            accelerator: Processes and device.
            inputs: What the run reads.
            model: The network as the run starts with it.
            quiet: No progress bar.

        Raises:
            DataError: The processes have found different checkpoints.
        """
        self.config, self.out, self.owner = config, out, owner
        self.accelerator, self.inputs = accelerator, inputs
        self.quiet = quiet or not accelerator.is_main_process
        if accelerator.is_main_process:
            say_emulated(config.precision, accelerator.device)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model: ReferringSegmentor = model.to(accelerator.device)
        # Code generated for one length of text and then for any has broken in the backward pass (torch 2.13).
        self.tokenise = Tokenizer(config.segmentor, one_length=config.compile)
        self.ema: Ema[ReferringSegmentor] | None = None
        if config.ema.decay:
            self.ema = Ema(self.model, config.ema.decay, config.burn_in_steps, warmup=config.ema.warmup)
        student = torch.compile(self.model) if config.compile else self.model
        teacher = self.ema.module if self.ema is not None and config.ema.teacher else None
        self.networks = Networks(student, teacher, config.weak_eval)
        self.method = METHODS[config.method](config)
        self.optimizer = build_optimizer(self.model, config.optim, config.segmentor.loaded_parts)
        self.alarm = CollapseAlarm(config.alarm, config.burn_in_steps + config.grace_steps)
        self.hidden: HiddenMasks | None = None
        hidden = (sample for ref in inputs.split.unlabelled for sample in ref)
        if (
            config.runtime.log_with_hidden_masks
            and config.uses_unlabelled
            and all(map(inputs.dataset.has_mask, hidden))
        ):
            self.hidden = HiddenMasks(inputs.dataset, *config.size_hw)
        self.step, self.seconds = 0, 0.0
        self._load_newest()
        require_same_step(accelerator, out, self.step)
        broadcast_state(self.model, *([self.ema.module] if self.ema is not None else []))

    def to_the_end(self) -> dict[str, Any]:
        """Run the remaining steps, export the network and write `done.json`."""
        config, accelerator = self.config, self.accelerator
        first, started, before = self.step, time.monotonic(), self.seconds
        last_scores: dict[str, float] = {}
        opened = training_log(config, self.out, self.owner, accelerator, first, quiet=self.quiet)
        with opened as log, stop_flag(interrupt=True) as told_to_stop:

            def stop_requested() -> bool:
                return told_to_stop() or (accelerator.is_main_process and self.owner.lost())

            def leave_if_told() -> None:
                if on_any_process(accelerator, stop_requested()):
                    self._leave()

            if first and self._validates_now() and not self._validated_before():
                last_scores = self._validate(leave_if_told)
                log("val", first, last_scores)
            keys = range(first * config.accumulation, config.steps * config.accumulation)
            batches = iterate(
                self._source(), keys, workers=config.runtime.workers, prefetch=config.runtime.prefetch
            )
            for step in progress(
                range(first, config.steps), config.steps, "train", self.quiet, initial=first
            ):
                result = train_step(
                    accelerator,
                    self.networks,
                    self.method,
                    self.optimizer,
                    [next(batches) for _ in range(config.accumulation)],
                    config,
                    ema=self.ema,
                    stop_requested=stop_requested,
                )
                norm = result.global_metrics.get("grad_norm", 0.0)
                self.alarm.check(step, result.loss, result.shares, norm)
                self.step, self.seconds = step + 1, before + time.monotonic() - started
                last = self.step == config.steps
                if self.step % config.runtime.log_every == 0 or last:
                    log("train", self.step, self._figures(result))
                every = config.runtime.checkpoint_every
                if self._validates_now() or last or result.stop or (every and self.step % every == 0):
                    self._save()  # before a validation, which may outlast the notice that a cluster gives
                if result.stop and not last:
                    self._leave()
                if self._validates_now():
                    last_scores = self._validate(leave_if_told)
                    log("val", self.step, last_scores)
            if config.eval_every and not last_scores:  # resumed after the last step
                last_scores = self._validate(leave_if_told)
        return self._finish(last_scores)

    def _leave(self) -> NoReturn:
        """End in order, on all processes; the checkpoint of this step has been written.

        Raises:
            DataError: The folder was taken over: nobody wants this run started again.
            SystemExit: Otherwise.
        """
        if self.accelerator.is_main_process:
            with self.owner.writing():
                pass
        # A log would else end in what the launcher makes of the exit status.
        say(
            f"stopped at step {self.step} of {self.config.steps}, checkpoint written; `train --resume` goes on",
            self.quiet,
        )
        raise SystemExit(STOPPED)

    def _source(self) -> BatchSource:
        """This process's batches."""
        plan = batch_plan(
            self.config,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        return self.inputs.source(plan, self.tokenise)

    def _figures(self, result: StepResult) -> dict[str, float]:
        """One line of the log: this step's figures over all processes."""
        local = {**result.metrics, **self._hidden_figures(result.pseudo)}
        figures = with_accuracy(mean_over_processes(self.accelerator, local))
        return {"loss": result.loss, **result.global_metrics, **figures, "seconds": round(self.seconds, 3)}

    def _hidden_figures(self, taught: Sequence[Pseudo]) -> dict[str, Tensor]:
        """Means over micro-batches of what was taught against held-back masks.

        From the first such mask on that some process cannot read there are none, on all processes alike: what is not
        learnt from never ends a run.
        """
        if self.hidden is None or not taught:
            return {}
        compared = []
        try:
            compared = [self.hidden.quality(pseudo) for pseudo in taught]
        except DataError as error:
            say(f"{error}; the run goes on, and its log without what is known by held-back masks")
        if on_any_process(self.accelerator, not compared):
            self.hidden = None
            return {}
        return {name: torch.stack([one[name] for one in compared]).mean() for name in compared[0]}

    def _validates_now(self) -> bool:
        """Whether a validation belongs to this step."""
        every = self.config.eval_every
        return bool(every) and (self.step % every == 0 or self.step == self.config.steps)

    def _validated_before(self) -> bool:
        """Whether the log of an earlier start has the validation of this step; the same on all processes."""
        is_main = self.accelerator.is_main_process
        return on_any_process(self.accelerator, is_main and has_record(self.out, self.step, "val"))

    def _validate(self, leave_if_told: Callable[[], None]) -> dict[str, float]:
        """Scores on the validation sentences, both frames named; a long one is left when the run is told to stop."""
        samples = spaced(scorable(self.inputs.dataset, self.config.val_split), self.config.val_limit)
        model = self.ema.module if self.ema is not None and self.config.ema.export else self.model
        scores = summarise(
            score_samples(
                self.accelerator,
                model,
                self.tokenise,
                self.inputs.dataset,
                samples,
                self.config.size_hw,
                batch=self.config.runtime.eval_batch,
                workers=self.config.runtime.workers,
                before_batch=leave_if_told,
            )
        )
        return {
            f"{name}_{frame}": scores[frame][name]
            for frame in ("model", "original")
            for name in ("oiou", "miou")
        } | {"num": len(samples)}

    def _save(self) -> None:
        """Checkpoint by the first process; the others wait for it."""
        if self.accelerator.is_main_process:
            weights = {"model": self.model.state_dict()}
            if self.ema is not None:
                weights["ema"] = self.ema.module.state_dict()
            with self.owner.writing():
                save_checkpoint(
                    self.out / "checkpoints",
                    self.step,
                    weights,
                    {"optimizer": self.optimizer.state_dict(), "method": self.method.state_dict()},
                    {
                        "seconds": self.seconds,
                        "strikes": self.alarm.strikes,
                        "ema_updates": self.ema.num_updates if self.ema is not None else 0,
                    },
                    keep=self.config.runtime.keep_checkpoints,
                )
        self.accelerator.wait_for_everyone()

    def _load_newest(self) -> None:
        """Take up the newest whole checkpoint, if there is one.

        Raises:
            DataError: It is of another network, optimiser or method than this code builds, or damaged.
        """
        folder = self.out / "checkpoints"
        found, damaged = list_checkpoints(folder), damaged_checkpoint(folder)
        if damaged is not None and not found:
            raise DataError(
                f"{damaged}: damaged, and there is no older one; delete it to begin again at step 0"
            )
        if not found:
            return
        if damaged is not None and self.accelerator.is_main_process:
            say(f"note: {damaged} is damaged: going on from {found[-1].name}")
        state = load_state(found[-1])
        self._load_weights(self.model, found[-1], "model")
        if self.ema is not None:
            self._load_weights(self.ema.module, found[-1], "ema")
            self.ema.num_updates = state["ema_updates"]
        self._load_state(self.optimizer.load_state_dict, found[-1], "optimizer")
        self._load_state(self.method.load_state_dict, found[-1], "method")
        self.alarm.strikes = dict(state["strikes"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _load_weights(self, network: torch.nn.Module, checkpoint: Path, name: str) -> None:
        weights = load_weights(checkpoint, name)
        if misfit := first_misfit(network, weights):
            raise self._other_code(checkpoint, "another network", f"{name}: {misfit}")
        network.load_state_dict(weights)

    def _load_state(self, load: Callable[[Any], None], checkpoint: Path, name: str) -> None:
        kept = load_object(checkpoint, name)
        try:
            load(kept)
        except (
            RuntimeError,
            KeyError,
            ValueError,
        ) as error:  # torch's words for other names, shapes or groups
            raise self._other_code(
                checkpoint, f"the state of another {name}", one_line(error, 120)
            ) from error

    def _other_code(self, checkpoint: Path, what: str, first: str) -> DataError:
        began = code_of(read_json(self.out / "config.json"))
        return DataError(
            f"{self.out}: {checkpoint.name} has {what} than this code builds ({first}); check out the code that the "
            f"run began with{f' ({began})' if began else ''}, or train anew in another folder"
        )

    def _finish(self, last_scores: dict[str, float]) -> dict[str, Any]:
        """Export, then `done.json` last."""
        done = {"step": self.step, "seconds": round(self.seconds, 3), "metrics": last_scores}
        if self.accelerator.is_main_process:
            averaged = self.ema is not None and self.config.ema.export
            with self.owner.writing():
                export_model(self.ema.module if averaged and self.ema is not None else self.model, self.out)
                write_card(self.out)
                sync(self.out / METRICS_FILE)
                write_json(self.out / "done.json", done)
                if self.config.runtime.shrink_finished:
                    for checkpoint in list_checkpoints(self.out / "checkpoints"):
                        shrink_checkpoint(checkpoint, ("method.pt",))
        self.accelerator.wait_for_everyone()
        return done
