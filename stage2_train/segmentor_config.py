"""What a segmentor is made of, at two sizes of one class: `tiny_config` (embedded) and `paper_config` (LAVT, Swin-B).

A config is enough to rebuild the module without weights (`segmentor.build_segmentor`) and to count its parameters on
the meta device (`params.count_parameters`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from shared.errors import DataError

EMBEDDED = "embedded"
"""Value of a path field that stands for the files shipped in `stage2_train/tiny/weights`."""

EMBEDDED_FOLDER = Path(__file__).parent / "tiny" / "weights"

UNCOUNTED = "starts from a network whose own labels are not counted"
"""What is said of a run for which `whole_network` names a file."""

NUM_STAGES = 4

VisionKind = Literal["swin", "swinv2", "convnextv2", "dinov3-convnext"]
"""Families of vision towers."""

VISION_KINDS: tuple[VisionKind, ...] = get_args(VisionKind)

WINDOWED: tuple[str, ...] = ("swin", "swinv2")
"""Those that attend within windows; the others are convolutional."""

TextKind = Literal["bert", "siglip", "modernbert"]
"""Families of language towers."""

TEXT_KINDS: tuple[TextKind, ...] = get_args(TextKind)

PARTS: tuple[str, ...] = ("vision", "text", "fusion", "decoder", "sesm", "branch")
"""Sub-modules of a segmentor, as named in its state dict and in `weight_parts`; `branch` is a whole second network."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision tower of four stages; each family has its file in `backbones`."""

    kind: VisionKind = "swin"
    """Family of the tower."""
    image_size: int
    """Height and width of the input, pixels; absolute positions are interpolated for any other."""
    patch: int = 4
    """Side of a patch, pixels."""
    embed_dim: int
    """Channels of stage 1; each later stage doubles them."""
    stage_dims: tuple[int, ...] = ()
    """Channels of each stage where they do not double, the first being `embed_dim`; empty where they do."""
    depths: tuple[int, ...]
    """Blocks of each of the four stages."""
    heads: tuple[int, ...] = ()
    """Attention heads of each stage; empty for a convolutional tower."""
    window: int = 0
    """Side of an attention window, tokens; 0 for a convolutional tower."""
    pretrained_windows: tuple[int, ...] = ()
    """swinv2: side of the windows of each stage that the weights were pretrained with; empty if as now."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its channels."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, rising linearly from 0."""
    absolute_positions: bool = False
    """Learn one embedding per patch. Words of place need it in a network too shallow to infer borders."""
    weights: str | None = None
    """Pretrained Hugging Face folder, or name of a repository in the local Hub cache (`owner/name`, and with a branch,
    tag or commit `owner/name@revision`), or a `.safetensors` file of `l2l weights convert`; None starts from random
    weights."""

    def __post_init__(self) -> None:
        """Check that the stages fit together."""
        if self.kind not in VISION_KINDS:
            raise DataError(f"vision.kind is {self.kind!r}; it must be one of {', '.join(VISION_KINDS)}")
        for name in ("depths", "heads") if self.kind in WINDOWED else ("depths",):
            if len(getattr(self, name)) != NUM_STAGES:
                raise DataError(f"vision.{name} is {getattr(self, name)}; {NUM_STAGES} stages are needed")
        self._check_kind()
        if self.patch < 1 or min(self.heads, default=1) < 1:
            raise DataError(f"vision.patch {self.patch} and vision.heads {self.heads} must be at least 1")
        if self.image_size % self.patch:
            raise DataError(
                f"vision.image_size {self.image_size} is not a multiple of vision.patch {self.patch}"
            )
        for stage, (dim, heads) in enumerate(zip(self.dims, self.heads, strict=False)):
            if dim % heads:
                raise DataError(
                    f"vision.heads: {heads} heads do not divide the {dim} channels of stage {stage + 1}"
                )
        if not 0 <= self.drop_path < 1:
            raise DataError(f"vision.drop_path is {self.drop_path}; it must be in [0, 1)")

    def _check_kind(self) -> None:
        """Refuse what a family does not have, rather than ignore it."""
        if self.kind in WINDOWED:
            if self.window < 1:
                raise DataError(f"vision.window is {self.window}; {self.kind} needs at least 1")
        elif self.heads or self.window or self.mlp_ratio != 4.0:
            raise DataError(f"vision.kind {self.kind} has no heads or window, and its mlp_ratio is 4")
        elif self.image_size % (self.patch * 2 ** (NUM_STAGES - 1)):
            raise DataError(
                f"vision.image_size {self.image_size} must be a multiple of {self.patch * 2 ** (NUM_STAGES - 1)}: "
                f"{self.kind} halves its map {NUM_STAGES - 1} times and cuts off what is left over"
            )
        if self.kind == "dinov3-convnext" and self.patch != 4:
            raise DataError(f"vision.patch is {self.patch}; dinov3-convnext has 4")
        if self.absolute_positions and self.kind != "swin":
            raise DataError(f"vision.absolute_positions: {self.kind} has none")
        if self.stage_dims and (
            self.kind in WINDOWED
            or len(self.stage_dims) != NUM_STAGES
            or self.stage_dims[0] != self.embed_dim
            or min(self.stage_dims) < 1
        ):
            raise DataError(
                f"vision.stage_dims is {self.stage_dims}; it is {NUM_STAGES} numbers, the first vision.embed_dim "
                f"{self.embed_dim}, and none for {' and '.join(WINDOWED)}, which double"
            )
        if self.pretrained_windows and (self.kind != "swinv2" or len(self.pretrained_windows) != NUM_STAGES):
            raise DataError(
                f"vision.pretrained_windows is {self.pretrained_windows}; it is {NUM_STAGES} numbers, for swinv2 alone"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels C_j of each stage."""
        return self.stage_dims or tuple(self.embed_dim * 2**stage for stage in range(NUM_STAGES))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A language tower and its tokenizer; each family has its file in `backbones`."""

    kind: TextKind = "bert"
    """Family of the tower."""
    tokenizer: str
    """Folder, or name of a repository in the local Hub cache, holding `tokenizer.json` or, for BERT, `vocab.txt`; or
    `embedded`, for BERT alone."""
    vocab_size: int
    """Rows of the word embedding; at least the tokenizer's."""
    hidden: int
    """Channels of a token."""
    layers: int
    """Transformer layers."""
    heads: int
    """Attention heads."""
    mlp: int
    """Hidden width of a layer's MLP."""
    max_tokens: int = 20
    """Longest sentence, special tokens included; the rest is cut."""
    positions: int = 512
    """Rows of the position embedding; for ModernBERT, which has none, the longest input."""
    dropout: float = 0.1
    """Dropout of states and attention (SigLIP: of attention)."""
    weights: str | None = None
    """As `segmentor.vision.weights`."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.kind not in TEXT_KINDS:
            raise DataError(f"text.kind is {self.kind!r}; it must be one of {', '.join(TEXT_KINDS)}")
        if self.tokenizer == EMBEDDED and self.kind != "bert":
            raise DataError(
                f"text.tokenizer is {EMBEDDED}, a vocabulary for text.kind bert, not {self.kind}: name the folder or "
                "repository of the tower's own tokenizer"
            )
        if not 3 <= self.max_tokens <= self.positions:
            raise DataError(f"text.max_tokens is {self.max_tokens}; it must be in [3, {self.positions}]")
        if self.hidden % self.heads:
            raise DataError(f"text.heads: {self.heads} heads do not divide {self.hidden} channels")
        if not 0 <= self.dropout < 1:
            raise DataError(f"text.dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SesmConfig:
    """Structural enhancement with a prior field, eq. 1-3."""

    operators: str = "PPAA"
    """Geometric operator of each stage: P a pixel-aligned linear map, A attention over the field's tokens."""
    alpha_init: float = 1.0
    """Start of alpha_j, the weight of the semantic term."""
    beta_init: float = 1.0
    """Start of beta_j, the weight of the geometric term."""

    def __post_init__(self) -> None:
        """Check the operators."""
        if len(self.operators) != NUM_STAGES or set(self.operators) - set("PA"):
            raise DataError(
                f"sesm.operators is {self.operators!r}; it must be {NUM_STAGES} letters out of P and A"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentorConfig:
    """The whole network."""

    vision: VisionConfig
    """Image tower."""
    text: TextConfig
    """Language tower."""
    decoder_width: int
    """Channels of the decoder's convolutions."""
    decoder_norm: Literal["batch", "group"] = "batch"
    """`group` makes every sample independent of its batch (accumulation and mixed batches are then exact)."""
    decoder_upscale: int = 1
    """Logits are predicted this many times finer than the patches. 1 is LAVT; small inputs lose small objects there."""
    fusion_dropout: float = 0.0
    """Dropout inside the word attention."""
    fusion_norm: Literal["instance", "channel"] = "instance"
    """What queries and attended words are normalised over: positions (LAVT) or channels. Over positions, whatever a
    sentence says to all pixels alike is lost."""
    sesm: SesmConfig | None = None
    """None leaves the module out altogether."""
    second_branch: bool = False
    """Build a second network beside the first, for training alone (method `ccvc`)."""
    weights: str | None = None
    """A `.safetensors` file of a whole network (`model/model.safetensors` of a run, or a converted LAVT), or
    `embedded`; None keeps what the towers' own `weights` gave."""
    weight_parts: tuple[str, ...] = field(default=("vision", "text", "fusion"))
    """Which parts of `weights` to load."""

    def __post_init__(self) -> None:
        """Check parts and ranges."""
        unknown = set(self.weight_parts) - set(PARTS)
        if unknown:
            raise DataError(
                f"segmentor.weight_parts has {sorted(unknown)}; known parts are {', '.join(PARTS)}"
            )
        if self.decoder_norm not in ("batch", "group"):
            raise DataError(f"segmentor.decoder_norm is {self.decoder_norm!r}; it must be batch or group")
        if self.fusion_norm not in ("instance", "channel"):
            raise DataError(f"segmentor.fusion_norm is {self.fusion_norm!r}; it must be instance or channel")
        if self.decoder_upscale < 1:
            raise DataError(f"segmentor.decoder_upscale is {self.decoder_upscale}; it must be at least 1")
        if self.decoder_width < 8 or self.decoder_width % 8:
            raise DataError(
                f"segmentor.decoder_width is {self.decoder_width}; it must be a positive multiple of 8"
            )

    @property
    def loaded_parts(self) -> frozenset[str]:
        """Parts out of `PARTS` that are read from weights; all others start at random."""
        towers = {"vision": self.vision.weights, "text": self.text.weights}
        own = {name for name, weights in towers.items() if weights is not None}
        return frozenset(own.union(self.weight_parts if self.weights is not None else ()))


def whole_network(segmentor: Mapping[str, Any]) -> str:
    """The file of a trained segmentor that a run starts from; "" if there is none, or it is the one that is shipped.

    Which parts are taken makes no difference: the towers of a network that was trained on masks have learnt from them
    as its decoder has. Towers that saw images or text alone are named by `vision.weights` and `text.weights`.

    Args:
        segmentor: A `SegmentorConfig` as `config.json` records it.
    """
    weights = segmentor.get("weights")
    return "" if weights in (None, "", EMBEDDED) else Path(str(weights)).name


def tiny_config(*, sesm: bool = False, weights: str | None = EMBEDDED) -> SegmentorConfig:
    """The embedded size: trains on a CPU in minutes from the shipped weights.

    Args:
        sesm: Build the structural enhancement.
        weights: As `SegmentorConfig.weights`; None starts from random weights.
    """
    return SegmentorConfig(
        vision=VisionConfig(
            image_size=96,
            patch=3,
            embed_dim=24,
            depths=(1, 2, 4, 1),
            heads=(1, 2, 4, 8),
            window=8,
            absolute_positions=True,
        ),
        text=TextConfig(
            tokenizer=EMBEDDED,
            vocab_size=256,
            hidden=128,
            layers=2,
            heads=4,
            mlp=256,
            positions=32,
            dropout=0.0,
        ),
        decoder_width=32,
        decoder_norm="group",
        decoder_upscale=2,
        fusion_norm="channel",
        sesm=SesmConfig() if sesm else None,
        weights=weights,
    )


def paper_config(
    *, sesm: bool = False, vision_weights: str | None = None, text_weights: str | None = None
) -> SegmentorConfig:
    """LAVT: Swin-B (patch 4, window 12) at 480 x 480 with BERT-base.

    Args:
        sesm: Build the structural enhancement.
        vision_weights: The pretrained Swin-B, as `VisionConfig.weights`.
        text_weights: Folder or cached repository of BERT-base uncased, tokenizer included.
    """
    return SegmentorConfig(
        vision=VisionConfig(
            image_size=480,
            embed_dim=128,
            depths=(2, 2, 18, 2),
            heads=(4, 8, 16, 32),
            window=12,
            drop_path=0.3,
            weights=vision_weights,
        ),
        text=TextConfig(
            tokenizer=text_weights or "google-bert/bert-base-uncased",
            vocab_size=30522,
            hidden=768,
            layers=12,
            heads=12,
            mlp=3072,
            weights=text_weights,
        ),
        decoder_width=512,
        sesm=SesmConfig() if sesm else None,
    )


def without_pretrained(config: SegmentorConfig) -> SegmentorConfig:
    """The same network without reading any pretrained file (its weights come from elsewhere)."""
    return dataclasses.replace(
        config,
        weights=None,
        vision=dataclasses.replace(config.vision, weights=None),
        text=dataclasses.replace(config.text, weights=None),
    )
