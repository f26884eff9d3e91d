"""What each training method asks of a run; no code of a method is imported for it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What a method asks of a run beside labelled samples."""

    needs_teacher: bool
    """Whether it is defined by an averaged teacher: `ema.teacher` must be set. Without a default, as nothing else would
    notice a method that is silent about it: a network predicts its own weak view as readily."""
    reads_unlabelled: bool = True
    """Whether it reads unlabelled samples."""
    reads_prior: bool = False
    """Whether it reads the proposals of the prior store."""
    reads_candidates: bool = False
    """Whether it reads the candidate masks of that store."""
    reads_weak_label: bool = False
    """Whether it is given a box or a point of each unlabelled object, as `weak_label` of its own section says."""
    needs_branch: bool = False
    """Whether it trains two networks: `segmentor.second_branch` must be set."""
    pairs_samples: bool = False
    """Whether each unlabelled sample is mixed with a labelled one: both batches must be of one size."""


METHOD_FACTS: dict[str, MethodFacts] = {
    "supervised": MethodFacts(needs_teacher=False, reads_unlabelled=False),
    "fixmatch": MethodFacts(needs_teacher=False),
    "resmatch": MethodFacts(needs_teacher=False),
    "semires": MethodFacts(needs_teacher=True, reads_candidates=True),
    "omni_res": MethodFacts(needs_teacher=True, reads_weak_label=True),
    "tscs_qdw": MethodFacts(needs_teacher=True),
    "augseg": MethodFacts(needs_teacher=True, pairs_samples=True),
    "ccvc": MethodFacts(needs_teacher=False, needs_branch=True),
    "catm": MethodFacts(needs_teacher=False),
    "mllm_blend": MethodFacts(needs_teacher=False, reads_prior=True),
    "distillation": MethodFacts(needs_teacher=False, reads_prior=True),
    "l2l": MethodFacts(needs_teacher=False, reads_prior=True),
}
"""What is true of each method that a config accepts; `stage2_train.methods.METHODS` maps the names to code."""
