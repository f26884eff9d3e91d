"""Configuration of stage 1. A recipe (`recipes.py`) returns a `PriorsConfig`; `--set a.b=c` changes single fields."""

from dataclasses import dataclass, field
from typing import Literal

from shared.config import DataConfig
from shared.errors import DataError


def _positive(group: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise DataError(f"{group}.{name} is {value}, expected a number above 0")


def _share(group: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise DataError(f"{group}.{name} is {value}, expected a share in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class MllmConfig:
    """The frozen multimodal model and how it is asked. Every field that the run reads is part of the fingerprint."""

    path: str
    """Folder of the model, or a Hugging Face repository id that lies in the local cache already."""
    revision: str = "main"
    """Revision of a repository id (branch, tag or commit); ignored for a folder."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of weights and activations."""
    question: str = ""
    """Another question than the family's own, `{expression}` where the expression goes; "": its own."""
    system: str = ""
    """Another system line than the family's own; "": its own."""
    max_model_len: int = 4096
    """Longest prompt plus answer, tokens."""
    max_tokens: int = 96
    """Longest answer, tokens. Short, so that a looping answer ends early."""
    min_pixels: int | None = None
    """Least height x width of the image the model sees; None: the model's own limit."""
    max_pixels: int | None = None
    """Greatest height x width of the image the model sees; None: what is usual for the family (Qwen2.5-VL and Qwen3-VL:
    1280 image tokens), at most the model's own limit."""
    top_logprobs: int = 10
    """Alternatives kept per token (K); 0 asks for no log-probabilities: no confidence, logistic edges."""
    num_samples: int = 0
    """Boxes sampled for each pair besides the greedy one (S), kept in the store with their mean pairwise IoU, a second
    confidence; 0: none."""
    sample_temperature: float = 0.7
    """Temperature of the sampled boxes."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1, and a question without an expression."""
        if not self.path:
            raise DataError("model.path is empty")
        around = self.question.replace("{expression}", "", 1)
        if self.question and (around == self.question or "{" in around or "}" in around):
            raise DataError(
                f"model.question is {self.question!r}, expected {{expression}} in it once, and no other braces"
            )
        _positive(
            "model",
            max_model_len=self.max_model_len,
            max_tokens=self.max_tokens,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            sample_temperature=self.sample_temperature,
        )
        if self.num_samples == 1 or not 0 <= self.num_samples <= 64:
            raise DataError(
                f"model.num_samples is {self.num_samples}, expected 0 or 2 to 64 (pairs are compared)"
            )
        if not 0 <= self.top_logprobs <= 20:
            raise DataError(
                f"model.top_logprobs is {self.top_logprobs}, expected 0 to 20 (the engine's limit)"
            )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What runs the model. Only `kind` (with its version) is part of the fingerprint; the rest is about speed."""

    kind: Literal["vllm", "transformers"] = "vllm"
    """`vllm`, or `transformers` (batched `generate`, the parity reference)."""
    chunk_rows: int = 512
    """Most pairs read, asked and turned into masks together."""
    ahead_rows: int = 512
    """Pairs that are with the engine besides those it is asked to finish, in whole chunks, so that its batch stays full
    from chunk to chunk."""
    image_gb: float = 4.0
    """Memory for images from being read until their masks are made, GiB a process: as model and SAM see them, and
    as vLLM prepares them. A chunk ends before it takes more than its share (a quarter, less if more is read ahead), so
    that with large photos it has fewer pairs than `chunk_rows`. COCO images of several pairs each stay below; an image
    that takes more than a share by itself is taken all the same."""
    batch_size: int = 32
    """Pairs per forward pass of the `transformers` engine."""
    caching: bool = True
    """Reuse of image features and of shared prompt prefixes. Off when timing the engine itself."""
    image_cache_gb: float = 0.25
    """Memory for images that vLLM keeps prepared, GiB, per process that holds them. It fills in any long run, so it is
    part of the memory a run takes. Rows of an image are neighbours, so a few images would do; with sampled boxes, asked
    after the greedy ones, those of a chunk."""
    block_size: int | None = None
    """Tokens of a block of vLLM's key-value cache, which finds a shared prefix again in whole blocks only. None: vLLM's
    choice, on a CPU 128; there it must be a multiple of 32. Two prompts of the embedded model share 28 tokens of about
    38, less than any such block, so its prefix cache never hits; a photograph alone takes hundreds."""
    eager: bool = False
    """No graph capture and no compilation: quick start, right for a CPU or a tiny model."""
    one_process: bool = True
    """Run vLLM's core inside this process."""
    gpus: int = 1
    """GPUs of a worker, for a model that one does not hold: each computes a part of every layer (vLLM's tensor
    parallelism). It changes the order in which numbers are summed, and so last bits, as the composition of batches
    does; like that it is no part of the fingerprint."""
    kv_cache_gb: int = 4
    """Key-value cache of vLLM on a CPU, GiB; on a GPU `gpu_memory` rules."""
    gpu_memory: float = 0.9
    """Share of the GPU's memory that vLLM may take."""
    memory_gb: float | None = None
    """Resident memory of a process and of those it started, GiB, above which it makes way: it completes the shards that
    it has in hand, and goes on in a new process of the same id. Against whatever grows in weeks of asking; what a
    fresh process takes (models, `image_gb`, caches) must fit with room to spare. None: no limit."""
    quiet: bool = True
    """Keep the engine's own log lines below the level of errors."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        _positive(
            "engine",
            chunk_rows=self.chunk_rows,
            ahead_rows=self.ahead_rows,
            image_gb=self.image_gb,
            batch_size=self.batch_size,
            gpus=self.gpus,
            image_cache_gb=self.image_cache_gb,
            kv_cache_gb=self.kv_cache_gb,
            block_size=self.block_size,
            memory_gb=self.memory_gb,
        )
        if not 0 < self.gpu_memory <= 1:
            raise DataError(f"engine.gpu_memory is {self.gpu_memory}, expected a share in (0, 1]")
        if self.kind == "transformers" and self.gpus > 1:
            raise DataError(f"engine.gpus is {self.gpus}, but engine.kind=transformers uses one; use vllm")


@dataclass(frozen=True, kw_only=True)
class CandidatesConfig:
    """Masks of whatever there is in an image, for method `semires`: SAM's everything mode, off unless `num` is set.

    Every field that is read is part of the fingerprint once `num` is above 0.
    """

    num: int = 0
    """Masks kept of an image (M); 0: none, and the store has no array `candidates`."""
    side: int = 64
    """Side G' of the stored G' x G' candidates over the whole image."""
    prompts: Literal["points", "boxes"] = "points"
    """`points`: each point of the grid prompts three masks, as published. `boxes`: squares around the points prompt one
    mask each, for a model that was trained on boxes alone."""
    points_per_side: int = 32
    """Points of the grid along each side of the image."""
    box_sides: tuple[float, ...] = (0.15, 0.25, 0.35)
    """Sides of the squares of `boxes`, share of the image side; about those of the things looked for."""
    min_iou: float = 0.8
    """Least IoU the model expects of a mask that is kept."""
    min_stability: float = 0.95
    """Least IoU of a mask at a threshold raised and lowered by `stability_offset`."""
    stability_offset: float = 1.0
    """That change of the threshold, logits."""
    same_iou: float = 0.7
    """A mask is dropped if its IoU with a better one exceeds this."""

    def __post_init__(self) -> None:
        """Refuse negative counts, empty grids and shares outside [0, 1]."""
        group = "proposer.candidates"
        if self.num < 0:
            raise DataError(f"{group}.num is {self.num}, expected 0 or more")
        _positive(
            group,
            side=self.side,
            points_per_side=self.points_per_side,
            stability_offset=self.stability_offset,
            **{f"box_sides[{index}]": side for index, side in enumerate(self.box_sides)},
        )
        if self.prompts == "boxes" and not self.box_sides:
            raise DataError(f"{group}.box_sides is empty, prompts=boxes needs at least one side")
        _share(group, min_iou=self.min_iou, min_stability=self.min_stability, same_iou=self.same_iou)


@dataclass(frozen=True, kw_only=True)
class ProposerConfig:
    """How a box becomes a soft mask. What a kind reads, and what of it is part of the fingerprint: `PROPOSERS`."""

    kind: Literal["soft-box", "box", "sam2", "sam"] = "soft-box"
    """`soft-box`: product of the four edge distributions. `box`: the covered share of each cell. `sam2`, `sam`: the box
    prompts a Segment Anything model (`Sam2Model`, `SamModel`), which sees the original image."""
    grid: int = 64
    """Side G of the stored G x G map over the whole image."""
    smoothing: float = 0.008
    """Width of the logistic kernel over edge distributions, share of the image side."""
    softness: float = 0.02
    """Width of a logistic edge where the model gave no distribution, share of the image side."""
    max_share: float = 0.08
    """Both widths are at most this share of the box's own side, so that a small box keeps its inside above 0.5."""
    path: str = ""
    """Folder of the SAM model, or a Hugging Face repository id that lies in the local cache already."""
    revision: str = "main"
    """Revision of a repository id; ignored for a folder."""
    multimask: bool = False
    """False: the model's single mask, which is trained for prompts that leave no doubt, as a box does. True: of its
    three masks (part, whole, surroundings) the one of the highest predicted IoU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of SAM's image encoder; prompts and masks are float32 in any case, so that boxes stay exact."""
    batch_images: int = 8
    """Images SAM encodes together."""
    batch_boxes: int = 64
    """Prompts whose masks SAM decodes together, of one image or several."""
    own_process: bool | None = None
    """Run SAM in a process of its own, which leaves the engine its Python and its threads. None: where there is no GPU.
    On a GPU SAM works on a stream of its own beside the engine, without copies between processes."""
    threads: int = 1
    """Threads of that process. One gives the same bits on every machine; for a large SAM on many cores more are
    quicker, and so are more workers, each with a SAM of its own."""
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    """Masks of whatever there is in an image, kept besides."""

    @property
    def needs_edges(self) -> bool:
        """Whether a mask needs more of an answer than its box: what the model knew about each edge."""
        return self.kind == "soft-box"

    @property
    def is_sam(self) -> bool:
        """Whether a model looks at the original images."""
        return self.kind in ("sam2", "sam")

    def __post_init__(self) -> None:
        """Refuse widths, grids and batches of no extent."""
        _positive(
            "proposer",
            grid=self.grid,
            smoothing=self.smoothing,
            softness=self.softness,
            max_share=self.max_share,
            batch_images=self.batch_images,
            batch_boxes=self.batch_boxes,
            threads=self.threads,
        )
        if self.candidates.num and not self.is_sam:
            raise DataError(
                f"proposer.candidates.num is {self.candidates.num}, but proposer.kind={self.kind} makes no candidates; "
                "use sam2 or sam"
            )


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """The grounding check before a run: drawn scenes whose boxes are known go through the exact engine."""

    mode: Literal["refuse", "warn", "skip"] = "refuse"
    """What a failed check does: stop, print a warning and go on, or do not check at all. Kept in the store."""
    scenes: int = 16
    """Scenes drawn, on squares, 4:3, 3:4 and squares of several tiles in turn, as far as the model tells them apart."""
    scale: int = 1
    """Whole-number enlargement of the 128 x 128 scenes before the model sees them."""
    min_mean_iou: float = 0.4
    """Least mean IoU of answered and true boxes (answers without a box count 0) in the images of each shape."""
    seed: int = 0
    """Key of the drawn scenes."""

    def __post_init__(self) -> None:
        """Refuse empty checks."""
        _positive("canary", scenes=self.scenes, scale=self.scale)
        _share("canary", min_mean_iou=self.min_mean_iou)


@dataclass(frozen=True, kw_only=True)
class PriorsConfig:
    """Everything stage 1 needs to write one store."""

    data: DataConfig
    """The data set."""
    model: MllmConfig
    """The frozen model."""
    splits: tuple[str, ...]
    """Splits to cover, in store order."""
    limit: int | None = None
    """The first so many pairs of the splits alone, in store order, as a store of its own that trainings pass over;
    None: all of them."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What runs the model."""
    proposer: ProposerConfig = field(default_factory=ProposerConfig)
    """How boxes become soft masks."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    """The grounding check."""
    cache_root: str = "cache/priors"
    """Folder of the stores."""
    image_hash: Literal["content", "size"] = "content"
    """What stands for an image in the fingerprint: its bytes, or only its name and size (huge sets, slow disks)."""
    reuse: bool = True
    """Take rows over from other stores in `cache_root` that were made by the same model in the same way about the same
    image bytes and expression, instead of asking again. Needs `image_hash=content`; with `model.num_samples` the sample
    id must be the same too, as the samples are drawn with it."""
    clip_tolerance: float = 0.02
    """A box may stick out of the frame by this share of the side and still count as `ok`."""
    answer_failure_ceiling: float = 0.5
    """Stop if a larger share of the answers holds no usable box. 1 lets everything through."""
    error_ceiling: float = 0.05
    """Stop if a larger share of the rows has an unreadable image or a failed request. 1 lets everything through."""
    ceiling_min_rows: int = 256
    """Rows seen before the two ceilings count (a smaller run is judged at its end, one of the first pairs alone never
    stopped). Rows taken over from other stores are seen, too; so many that are asked for and did not fail there before
    are judged by themselves as well."""

    def __post_init__(self) -> None:
        """Refuse empty or repeated splits and shares outside [0, 1]."""
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise DataError(f"splits is {','.join(self.splits)!r}, expected at least one and none twice")
        if not self.cache_root:
            raise DataError("cache_root is empty")
        _share(
            "priors",
            clip_tolerance=self.clip_tolerance,
            answer_failure_ceiling=self.answer_failure_ceiling,
            error_ceiling=self.error_ceiling,
        )
        _positive("priors", ceiling_min_rows=self.ceiling_min_rows, limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """A store of soft masks made elsewhere (by CARIS, say); no model is asked and no engine is started."""

    data: DataConfig
    """The data set."""
    source: str
    """Folder of `<sample_id>.png` or `<sample_id>.npy` files, or a Zarr group with `sample_id`, `mask` and, if it shall
    be compared, `expression`."""
    splits: tuple[str, ...]
    """Splits to cover, in store order; masks of other splits are passed over."""
    grid: int = 64
    """Side G of the stored G x G map over the whole image."""
    cache_root: str = "cache/priors"
    """Folder of the stores."""
    image_hash: Literal["content", "size"] = "content"
    """What stands for a file of masks in the fingerprint: its bytes, or only its name and size."""
    missing_ceiling: float = 0.5
    """Stop before anything is written if the source lacks a larger share of the rows. 1 lets everything through."""

    def __post_init__(self) -> None:
        """Refuse empty or repeated splits, grids of no extent and shares outside [0, 1]."""
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise DataError(f"splits is {','.join(self.splits)!r}, expected at least one and none twice")
        if not self.cache_root:
            raise DataError("cache_root is empty")
        _positive("import", grid=self.grid)
        _share("import", missing_ceiling=self.missing_ceiling)
