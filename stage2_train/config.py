"""Everything a training run is determined by, as one frozen tree.

Parts that belong to one box of the method are defined beside it (`spm`, `rple`, `losses`, `ema`, `alarm`), those of the
systems it is compared with in `comparison_config`; this file holds the rest and puts them together. Two runs with equal
configs on one machine type give equal weights.
"""

from dataclasses import dataclass, field
from typing import Literal

from shared.config import DataConfig
from shared.errors import DataError
from stage2_train.alarm import AlarmConfig
from stage2_train.comparison_config import (
    AugsegConfig,
    BlendConfig,
    CatmConfig,
    CcvcConfig,
    DistillationConfig,
    FixmatchConfig,
    OmniResConfig,
    ResmatchConfig,
    SemiresConfig,
    TscsQdwConfig,
)
from stage2_train.ema import EmaConfig
from stage2_train.losses import CLASS_WEIGHTS, UnsupervisedLossConfig
from stage2_train.method_facts import METHOD_FACTS, MethodFacts
from stage2_train.optim import OptimConfig
from stage2_train.rple.ddpg import DdpgConfig
from stage2_train.rple.policy import PolicyConfig
from stage2_train.rple.reward import RewardConfig
from stage2_train.segmentor_config import SegmentorConfig
from stage2_train.spm import SpmConfig
from stage2_train.text_augment import StrongTextConfig
from stage2_train.transforms import StrongConfig, WeakConfig


@dataclass(frozen=True, kw_only=True)
class SampleLossConfig:
    """Weights of the labelled and the unlabelled part of the loss."""

    class_weights: tuple[float, float] = CLASS_WEIGHTS
    """Cross-entropy weights of background and foreground on labelled samples."""
    lambda_labelled: float = 1.0
    """Weight of the labelled loss (lambda_l)."""
    lambda_unlabelled: float = 1.0
    """Weight of the unlabelled loss (lambda_u)."""
    rampup_steps: int = 0
    """Steps over which lambda_u rises linearly from 0, after any burn-in (the paper is silent: none)."""
    burn_in_share: float = 0.0
    """Share of all steps, the first ones, that see labelled samples alone; after them a moving average of the weights
    starts, as a copy (the paper: none)."""
    unlabelled: UnsupervisedLossConfig = field(default_factory=UnsupervisedLossConfig)
    """Loss on pseudo-labels."""

    def __post_init__(self) -> None:
        """Check signs."""
        if min(self.class_weights) <= 0:  # a sample all of that class would have no mean
            raise DataError(f"loss.class_weights is {self.class_weights}; both must be above 0")
        if min(self.lambda_labelled, self.lambda_unlabelled, self.rampup_steps) < 0:
            raise DataError("loss: lambda_* and rampup_steps must not be negative")
        if not 0.0 <= self.burn_in_share < 1.0:
            raise DataError(f"loss.burn_in_share is {self.burn_in_share}, not in [0,1)")


@dataclass(frozen=True, kw_only=True)
class L2lConfig:
    """Which parts of the method act, and the choices the paper leaves open."""

    use_spm: bool = True
    """Fuse the prior into the target (eq. 4-6); off: the target is Pw."""
    use_sesm: bool = True
    """Feed a prior field to the network (eq. 1-3); the segmentor must be built with it."""
    use_rple: bool = True
    """Learn the thresholds (eq. 7-14); off: `tau_fg` and `tau_bg` stay."""
    field_probability: float = 0.5
    """Probability with which a training sample sees the field (ours: otherwise the target could be copied)."""
    tau_fg: float = 0.70
    """Static foreground threshold where the policy is off."""
    tau_bg: float = 0.20
    """Static background threshold where the policy is off."""
    band_px: int = -1
    """Ignored band at region boundaries, pixels; -1: the paper's 3 px at 480, scaled to the input and rounded down."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.0 <= self.field_probability <= 1.0:
            raise DataError(f"l2l.field_probability is {self.field_probability}, not in [0,1]")
        if not 0.0 <= self.tau_bg < self.tau_fg <= 1.0:
            raise DataError(f"l2l: tau_bg {self.tau_bg} must be below tau_fg {self.tau_fg}, both in [0,1]")
        if self.band_px < -1:
            raise DataError(f"l2l.band_px is {self.band_px}; -1 scales it, 0 turns it off")


@dataclass(frozen=True, kw_only=True)
class RpleConfig:
    """Policy learning."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Where the thresholds start, and where they may go."""
    ddpg: DdpgConfig = field(default_factory=DdpgConfig)
    """The learner."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What it maximises."""


TRACKER_NAMES = ("wandb", "mlflow")
"""Trackers besides TensorBoard: Weights & Biases, MLflow."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How a run is carried out; nothing here changes its result, so a resumed run may change it."""

    workers: int = 0
    """Worker processes that read batches; 0 reads in a thread."""
    prefetch: int = 2
    """Batches read ahead (per worker)."""
    cache_mib: int = 2048
    """Most MiB per reading process for resized images and labelled masks, kept in memory if all fit; 0 keeps none."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0 writes one only at the end or on a signal."""
    keep_checkpoints: int = 1
    """How many of the newest checkpoints stay."""
    eval_batch: int = 64
    """Sentences per pass of a validation, on each process; smaller where a GPU's memory ends."""
    shrink_finished: bool = False
    """Once the run has finished, delete weights and optimiser of its checkpoints, most of what it takes on the disk:
    its network is in `model/`, and a finished run is never continued."""
    log_every: int = 10
    """Steps between lines of `metrics.jsonl`; each line describes its own step."""
    tensorboard: bool = True
    """Whether the log is also written for TensorBoard."""
    trackers: tuple[str, ...] = ()
    """Where the log goes besides: `wandb`, `mlflow`, or both."""
    log_with_hidden_masks: bool = True
    """Compare pseudo-labels with the masks held back from the unlabelled samples, for the log only."""
    compare_images: bool = True
    """Refuse a store that was made for other bytes of the images; off where only their metadata have changed since."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("workers", "prefetch", "cache_mib", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise DataError(f"runtime.{name} is {getattr(self, name)}, below 0")
        for name in self.trackers:
            if name not in TRACKER_NAMES:
                raise DataError(f"runtime.trackers: {name!r} is none of {', '.join(TRACKER_NAMES)}")
        for name in ("log_every", "keep_checkpoints", "eval_batch"):
            if getattr(self, name) < 1:
                raise DataError(f"runtime.{name} is {getattr(self, name)}, below 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    data: DataConfig
    """The data set."""
    cache_root: str = "cache/priors"
    """Folder searched for prior stores."""
    store: str = ""
    """Prior store; "" takes the one complete store under `cache_root` that was made for `data`."""
    misplaced_priors: float = 0.0
    """Share of the train sentences given the prior of another object of their image, to study robustness; of a JSONL
    file every line counts as an object of its own."""
    fraction: float = 0.05
    """Share of the train images that carry a mask whose masks are used; nobody need have drawn one for the others."""
    split_seed: int = 0
    """Seed of that draw."""
    image_ids_file: str = ""
    """File of labelled images instead of the draw: their ids or file names, one a line, as a JSON list, a run's
    `split.json`, or what `l2l data split --json` prints; "" draws."""
    method: str = "l2l"
    """The method: supervised, fixmatch, resmatch, semires, omni_res, tscs_qdw, augseg, ccvc, catm, mllm_blend,
    distillation, l2l."""
    segmentor: SegmentorConfig
    """The network; its `vision.image_size` is the side of the model input."""
    seed: int = 22
    """Seed of order, views, weights that start at random, and exploration."""
    steps: int
    """Optimiser steps of the run."""
    batch_labelled: int = 16
    """Labelled samples per optimiser step, over all processes and micro-batches."""
    batch_unlabelled: int = 16
    """Unlabelled samples per optimiser step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per optimiser step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast type of the network."""
    compile: bool = False
    """Whether `torch.compile` is used."""
    weak_eval: bool = True
    """Whether the weak view is predicted in evaluation mode (no dropout, running statistics; the paper is silent)."""
    eval_every: int = 0
    """Steps between evaluations on `val_split`; 0 never."""
    val_split: str = "val"
    """Split evaluated during training."""
    val_limit: int = 500
    """Sentences of it, evenly spaced (0 = all)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    weak: WeakConfig = field(default_factory=WeakConfig)
    """Weak view."""
    strong: StrongConfig = field(default_factory=StrongConfig)
    """Strong image view."""
    text: StrongTextConfig = field(default_factory=StrongTextConfig)
    """Strong text view."""
    loss: SampleLossConfig = field(default_factory=SampleLossConfig)
    """Losses."""
    fixmatch: FixmatchConfig = field(default_factory=FixmatchConfig)
    """Of method `fixmatch`."""
    resmatch: ResmatchConfig = field(default_factory=ResmatchConfig)
    """Of method `resmatch`."""
    semires: SemiresConfig = field(default_factory=SemiresConfig)
    """Of method `semires`."""
    omni_res: OmniResConfig = field(default_factory=OmniResConfig)
    """Of method `omni_res`."""
    tscs_qdw: TscsQdwConfig = field(default_factory=TscsQdwConfig)
    """Of method `tscs_qdw`."""
    augseg: AugsegConfig = field(default_factory=AugsegConfig)
    """Of method `augseg`."""
    ccvc: CcvcConfig = field(default_factory=CcvcConfig)
    """Of method `ccvc`."""
    catm: CatmConfig = field(default_factory=CatmConfig)
    """Of method `catm`."""
    blend: BlendConfig = field(default_factory=BlendConfig)
    """Of method `mllm_blend`."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Of method `distillation`."""
    l2l: L2lConfig = field(default_factory=L2lConfig)
    """Of method `l2l`."""
    spm: SpmConfig = field(default_factory=SpmConfig)
    """Fusion (eq. 4-6)."""
    rple: RpleConfig = field(default_factory=RpleConfig)
    """Policy learning (eq. 7-14)."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Moving average of the weights."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    """Collapse alarm."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """How the run is carried out."""

    def __post_init__(self) -> None:
        """Check what concerns several parts."""
        if self.method not in METHOD_FACTS:
            raise DataError(f"method is {self.method!r}, not one of {', '.join(METHOD_FACTS)} (METHOD_FACTS)")
        if self.precision not in ("fp32", "bf16"):
            raise DataError(f"precision is {self.precision!r}, not fp32 or bf16")
        if not 0.0 < self.fraction <= 1.0:
            raise DataError(f"fraction is {self.fraction}, not in (0,1]")
        if not 0.0 <= self.misplaced_priors <= 1.0:
            raise DataError(f"misplaced_priors is {self.misplaced_priors}, not in [0,1]")
        if self.steps < 1 or self.batch_labelled < 1 or self.batch_unlabelled < 0 or self.accumulation < 1:
            raise DataError(
                f"steps {self.steps}, batch_labelled {self.batch_labelled} and accumulation {self.accumulation} must "
                f"be at least 1, batch_unlabelled {self.batch_unlabelled} at least 0"
            )
        if self.eval_every < 0 or self.val_limit < 0:
            raise DataError("eval_every and val_limit must not be negative")
        for name in self._batches:
            if getattr(self, name) % self.accumulation:
                raise DataError(
                    f"{name} {getattr(self, name)} is not a multiple of accumulation {self.accumulation}"
                )
        if self.uses_unlabelled and not self.batch_unlabelled:
            raise DataError(f"method {self.method} needs batch_unlabelled of at least 1")
        if self.uses_field and self.segmentor.sesm is None:
            raise DataError(
                "l2l.use_sesm needs a segmentor built with sesm; use a recipe with it or l2l.use_sesm=false"
            )
        if self.uses_policy and self.rple.ddpg.capacity < self.batch_unlabelled:
            raise DataError(
                f"rple.ddpg.capacity is {self.rple.ddpg.capacity}: a step adds batch_unlabelled "
                f"{self.batch_unlabelled} transitions, and all must fit in"
            )
        self._check_needs()

    def _check_needs(self) -> None:
        """What the method asks of the rest."""
        facts = self.method_facts
        if facts.needs_teacher and not self.ema.teacher:
            raise DataError(f"method {self.method} needs a teacher: set ema.decay and ema.teacher=true")
        if facts.needs_branch and not self.segmentor.second_branch:
            raise DataError(f"method {self.method} needs segmentor.second_branch=true")
        if facts.needs_branch and (self.ema.teacher or self.compile):
            raise DataError(
                f"method {self.method} has no use for ema.teacher, and its two networks are not compiled"
            )
        if facts.pairs_samples and self.batch_labelled != self.batch_unlabelled:
            raise DataError(
                f"method {self.method} mixes each unlabelled sample with a labelled one: batch_labelled "
                f"{self.batch_labelled} and batch_unlabelled {self.batch_unlabelled} must be equal"
            )

    def require_shares(self, num_processes: int) -> None:
        """Refuse a number of processes that the batches cannot be shared out over.

        Raises:
            DataError: A batch that is no multiple of processes times micro-batches.
        """
        for name in self._batches:
            if self._rest(name, num_processes):
                fit = next(
                    n
                    for n in range(num_processes, 0, -1)
                    if not any(self._rest(one, n) for one in self._batches)
                )
                raise DataError(
                    f"{name} {getattr(self, name)} cannot be shared out over {num_processes} process(es) "
                    f"and {self.accumulation} micro-batch(es): start {fit} in all "
                    f"(torchrun --nproc_per_node {fit}, make PROCS={fit}; of a batch job nodes times processes), or "
                    "change the batch"
                )

    def _rest(self, name: str, num_processes: int) -> int:
        """Samples of a batch that are left over when it is shared out."""
        return int(getattr(self, name) % (self.accumulation * num_processes))

    @property
    def _batches(self) -> tuple[str, ...]:
        """Fields with the sizes of the batches that are read."""
        return ("batch_labelled", "batch_unlabelled") if self.uses_unlabelled else ("batch_labelled",)

    @property
    def burn_in_steps(self) -> int:
        """How many of the first steps see labelled samples alone."""
        return int(self.loss.burn_in_share * self.steps)

    @property
    def method_facts(self) -> MethodFacts:
        """What is true of the method."""
        return METHOD_FACTS[self.method]

    @property
    def grace_steps(self) -> int:
        """How many steps after the burn-in the alarm lets pass: a long run takes longer to label its first pixels."""
        given = self.alarm.grace_steps
        return max(100, self.steps // 50) if given is None else given

    @property
    def uses_unlabelled(self) -> bool:
        """Whether unlabelled samples are read."""
        return self.method_facts.reads_unlabelled

    @property
    def uses_prior(self) -> bool:
        """Whether the prior store is read."""
        is_off = self.method == "l2l" and not (self.l2l.use_spm or self.l2l.use_sesm)
        return self.method_facts.reads_prior and not is_off

    @property
    def uses_candidates(self) -> bool:
        """Whether candidate masks are read from the prior store."""
        return self.method_facts.reads_candidates

    @property
    def uses_store(self) -> bool:
        """Whether anything is read from the prior store."""
        return self.uses_prior or self.uses_candidates

    @property
    def weak_label(self) -> Literal["", "box", "point"]:
        """Kind of weak label read for the unlabelled samples; "" for none."""
        if not self.method_facts.reads_weak_label:
            return ""
        kind: Literal["box", "point"] = getattr(self, self.method).weak_label
        return kind

    @property
    def uses_policy(self) -> bool:
        """Whether a policy picks the thresholds."""
        return self.method == "l2l" and self.l2l.use_rple

    @property
    def uses_field(self) -> bool:
        """Whether the network is given a prior field in training."""
        return self.method == "l2l" and self.l2l.use_sesm

    @property
    def trains_field(self) -> bool:
        """Whether the part of the network that takes a field learns."""
        return self.uses_field and self.l2l.field_probability > 0

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the model input, pixels."""
        return (self.segmentor.vision.image_size, self.segmentor.vision.image_size)
