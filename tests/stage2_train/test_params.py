"""Parameter counts that the paper prints."""

from stage2_train.params import count_parameters
from stage2_train.segmentor_config import paper_config, tiny_config


def test_paper_baseline_has_exactly_the_published_count() -> None:
    counts = count_parameters(paper_config())
    assert counts["segmentor"] == 227_739_514
    assert counts["sesm"] == 0


def test_structural_enhancement_adds_about_what_the_paper_adds() -> None:
    """9.353M in the paper; its operators' inner shapes are not given, ours come to 9.765M."""
    counts = count_parameters(paper_config(sesm=True))
    assert counts["sesm"] == 9_765_000
    assert counts["segmentor"] == 227_739_514 + 9_765_000
    assert abs(counts["sesm"] - 9_353_000) / 9_353_000 < 0.05


def test_policy_has_exactly_the_published_count() -> None:
    counts = count_parameters(tiny_config(weights=None))
    assert (counts["actor"], counts["critic"]) == (4738, 4801)
    assert counts["actor"] + counts["critic"] == 9539


def test_parts_add_up() -> None:
    counts = count_parameters(tiny_config(sesm=True))
    assert (
        sum(counts[part] for part in ("vision", "text", "fusion", "decoder", "sesm")) == counts["segmentor"]
    )
