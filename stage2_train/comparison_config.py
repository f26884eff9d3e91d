"""Settings of the systems L2L is compared with; each says where its numbers come from, and what is ours."""

from dataclasses import dataclass
from typing import Literal

from shared.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FixmatchConfig:
    """Confidence thresholding of the weak view."""

    threshold: float = 0.7
    """Least confidence max(Pw, 1 - Pw) of a selected pixel."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.5 <= self.threshold <= 1.0:
            raise DataError(f"fixmatch.threshold is {self.threshold}, not in [0.5,1]")


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    """Linear blend of the weak view and the prior."""

    prior_share: float = 0.5
    """Share of P† in the target; the rest is Pw."""
    target: Literal["threshold", "soft", "agree"] = "threshold"
    """`threshold`: pixels of the blend beyond `threshold`; `soft`: the blend itself; `agree`: pixels where both maps
    are confident, of samples whose agreement W exceeds `agreement`."""
    threshold: float = 0.7
    """Least confidence of a selected pixel."""
    agreement: float = 0.7
    """Least agreement W(Pw, P†) of a sample under `agree`."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.0 <= self.prior_share <= 1.0 or not 0.0 <= self.agreement <= 1.0:
            raise DataError("blend.prior_share and blend.agreement must be in [0,1]")
        if not 0.5 <= self.threshold <= 1.0:
            raise DataError(f"blend.threshold is {self.threshold}, not in [0.5,1]")
        if self.target not in ("threshold", "soft", "agree"):
            raise DataError(f"blend.target is {self.target!r}, not threshold, soft or agree")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """The prior alone as target; the selection of samples is ours."""

    threshold: float = 0.7
    """Least confidence max(P†, 1 - P†) of a selected pixel."""
    select_from: float = 1.0
    """Share of the steps after which only samples are taught whose prior the network shares; 1: all, to the end."""
    select_iou: float = 0.3
    """Least IoU of prior and weak prediction, both cut at 0.5, of such a sample."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.5 <= self.threshold <= 1.0:
            raise DataError(f"distillation.threshold is {self.threshold}, not in [0.5,1]")
        if not 0.0 <= self.select_from <= 1.0 or not 0.0 <= self.select_iou <= 1.0:
            raise DataError("distillation.select_from and distillation.select_iou must be in [0,1]")


@dataclass(frozen=True, kw_only=True)
class ResmatchConfig:
    """FixMatch whose samples count by how good and how settled their pseudo-labels look (formula ours)."""

    threshold: float = 0.7
    """Least confidence max(Pw, 1 - Pw) of a selected pixel."""
    quality_power: float = 1.0
    """Exponent of the pseudo-label's quality in a sample's weight; 0 leaves it out."""
    agreement_power: float = 1.0
    """Exponent of the agreement of weak and strong prediction; 0 leaves it out."""
    min_weight: float = 0.1
    """Least weight of a sample: an untrained network agrees with nothing and must still learn."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.5 <= self.threshold <= 1.0 or not 0.0 <= self.min_weight <= 1.0:
            raise DataError(
                f"resmatch: threshold {self.threshold} must be in [0.5,1], min_weight {self.min_weight} in [0,1]"
            )
        if self.quality_power < 0 or self.agreement_power < 0:
            raise DataError("resmatch.quality_power and resmatch.agreement_power must not be negative")


@dataclass(frozen=True, kw_only=True)
class SemiresConfig:
    """Pseudo-masks exchanged for class-agnostic candidate masks, or weighted pixel by pixel."""

    match: Literal["iom", "cpi"] = "iom"
    """`iom`: the candidate of highest IoU; `cpi`: the union of all candidates that fit."""
    iou: float = 0.5
    """IoU that the best candidate must exceed under `iom`."""
    overlap: float = 0.7
    """|s & c| / |c| or |s & c| / |s| that a candidate must exceed under `cpi`."""
    weight_offset: float = 1.3
    """a of the pixel weight a - exp(-(p - 0.5)^2 / b) / sqrt(pi b) where no candidate fits."""
    weight_spread: float = 0.2
    """b of that weight."""
    max_candidates: int = 16
    """Candidates kept for an image."""
    same_iou: float = 0.8
    """Candidates built from proposals are one if their IoU is at least this (ours)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.match not in ("iom", "cpi"):
            raise DataError(f"semires.match is {self.match!r}, not iom or cpi")
        for name in ("iou", "overlap", "same_iou"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise DataError(f"semires.{name} is {getattr(self, name)}, not in (0,1]")
        if self.weight_spread <= 0 or self.max_candidates < 1:
            raise DataError("semires.weight_spread must be above 0 and semires.max_candidates at least 1")


@dataclass(frozen=True, kw_only=True)
class OmniResConfig:
    """A teacher's mask corrected by a box or a point that someone drew."""

    weak_label: Literal["box", "point"] = "box"
    """What is known of the unlabelled samples' objects."""
    foreground: float = 0.7
    """Pw above which a pixel is foreground."""
    background: float = 0.3
    """Pw below which a pixel is background."""
    background_floor: float = 0.01
    """Pw at or below which it is ignored again, as too easy."""
    min_fill: float = 0.2
    """Least share of the box that the mask fills; a sample below it is dropped."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.weak_label not in ("box", "point"):
            raise DataError(f"omni_res.weak_label is {self.weak_label!r}, not box or point")
        if not 0.0 <= self.background_floor < self.background <= self.foreground < 1.0:
            raise DataError("omni_res: need 0 <= background_floor < background <= foreground < 1")
        if not 0.0 <= self.min_fill <= 1.0:
            raise DataError(f"omni_res.min_fill is {self.min_fill}, not in [0,1]")


@dataclass(frozen=True, kw_only=True)
class TscsQdwConfig:
    """3DResT's sampling by teacher-student consistency and weighting by quality."""

    join_iou: float = 0.95
    """Student-teacher IoU above which a sample is treated as a labelled one."""
    threshold: float = 0.7
    """Least confidence of a selected pixel of the other samples (ours: as FixMatch)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.0 <= self.join_iou <= 1.0 or not 0.5 <= self.threshold <= 1.0:
            raise DataError(
                f"tscs_qdw: join_iou {self.join_iou} must be in [0,1], threshold {self.threshold} in [0.5,1]"
            )


@dataclass(frozen=True, kw_only=True)
class AugsegConfig:
    """Labelled regions pasted into the unlabelled images that the teacher is unsure of."""

    threshold: float = 0.95
    """Least confidence of a selected pixel."""
    min_area: float = 0.1
    """Smallest pasted region, share of the image (ours)."""
    max_area: float = 0.4
    """Largest pasted region, share of the image (ours)."""
    paste: Literal["ignore", "background", "copy"] = "ignore"
    """Label of pasted pixels: none (ours: the sentence was not said of them), background, or the mask they had."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.5 <= self.threshold <= 1.0:
            raise DataError(f"augseg.threshold is {self.threshold}, not in [0.5,1]")
        if not 0.0 < self.min_area <= self.max_area < 1.0:
            raise DataError("augseg: need 0 < min_area <= max_area < 1")
        if self.paste not in ("ignore", "background", "copy"):
            raise DataError(f"augseg.paste is {self.paste!r}, not ignore, background or copy")


@dataclass(frozen=True, kw_only=True)
class CcvcConfig:
    """Two branches that teach each other and are kept apart."""

    conflict_confidence: float = 0.9
    """Least confidence of the teaching branch for a pixel on which the branches differ to count more."""
    conflict_weight: float = 2.0
    """Weight of such a pixel; all others have 1."""
    discrepancy: float = 1.0
    """Weight of the discrepancy loss 1 + cos (the released script's)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.5 <= self.conflict_confidence <= 1.0:
            raise DataError(f"ccvc.conflict_confidence is {self.conflict_confidence}, not in [0.5,1]")
        if self.conflict_weight < 0 or self.discrepancy < 0:
            raise DataError("ccvc.conflict_weight and ccvc.discrepancy must not be negative")


@dataclass(frozen=True, kw_only=True)
class CatmConfig:
    """Confidence thresholds of the two classes that follow the network's own confidence (formula ours)."""

    start: float = 0.7
    """Both thresholds before the first step."""
    momentum: float = 0.99
    """Share of the old threshold kept at each step."""
    lowest: float = 0.5
    """Thresholds never fall below this."""
    highest: float = 0.95
    """Thresholds never rise above this."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.5 <= self.lowest <= self.start <= self.highest <= 1.0:
            raise DataError("catm: need 0.5 <= lowest <= start <= highest <= 1")
        if not 0.0 <= self.momentum < 1.0:
            raise DataError(f"catm.momentum is {self.momentum}, not in [0,1)")
