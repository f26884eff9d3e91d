from pathlib import Path

import pytest

from stage2_train.method_facts import METHOD_FACTS, MethodFacts
from stage2_train.methods import METHODS
from tests.stage2_train.miniature import batch_of, mini_config, plain_config


def test_every_method_has_code_and_facts() -> None:
    assert list(METHOD_FACTS) == list(METHODS), "a method stands in METHODS and in METHOD_FACTS, in one order"


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_holds_what_its_method_declares_and_no_more(mini_root: Path, method: str) -> None:
    facts = METHOD_FACTS[method]
    config = mini_config(mini_root) if method == "l2l" else plain_config(mini_root, method)
    batch = batch_of(config)
    part = batch.unlabelled
    assert (part is not None) == facts.reads_unlabelled
    assert (batch.labelled.prior_B1HW is not None) == facts.reads_prior
    if part is not None:
        assert (part.prior_B1HW is not None) == facts.reads_prior
        assert (part.candidates_BMHW is not None) == facts.reads_candidates
        assert (part.box_B4 is not None or part.point_B2 is not None) == facts.reads_weak_label


def test_what_the_systems_read_is_what_their_papers_say() -> None:
    def named(fact: str) -> set[str]:
        return {name for name, facts in METHOD_FACTS.items() if getattr(facts, fact)}

    assert named("reads_prior") >= {"l2l", "mllm_blend"} and "semires" in named("reads_candidates")
    assert "omni_res" in named("reads_weak_label") and "supervised" not in named("reads_unlabelled")
    assert named("needs_teacher") >= {"semires", "omni_res", "tscs_qdw", "augseg"}


def test_no_method_can_be_silent_about_its_teacher() -> None:
    with pytest.raises(TypeError, match="needs_teacher"):
        MethodFacts(reads_prior=True)  # type: ignore[call-arg]
