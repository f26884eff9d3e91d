"""Parameter counts that the paper prints."""

import dataclasses

import pytest

from stage2_train.params import count_parameters
from stage2_train.segmentor_config import PARTS, SegmentorConfig, paper_config, tiny_config


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
    counts = count_parameters(dataclasses.replace(tiny_config(sesm=True), second_branch=True))
    assert sum(counts[part] for part in PARTS) == counts["segmentor"] and counts["branch"] > 0


@pytest.mark.parametrize("config", [tiny_config(), paper_config()], ids=["tiny", "paper"])
def test_a_second_branch_is_a_network_and_the_map_in_its_path(config: SegmentorConfig) -> None:
    """The map has weights and a norm."""
    one, two = (count_parameters(dataclasses.replace(config, second_branch=on)) for on in (False, True))
    width = config.decoder_width
    assert one["branch"] == 0 and two["branch"] == one["segmentor"] + width * width + 2 * width
    assert two["segmentor"] == one["segmentor"] + two["branch"]
