"""The report's arithmetic on cases small enough to do by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from shared.seeding import rng
from stage2_train.report import stats
from stage2_train.report.run_data import EvalData, RunData


def sentence(number, *, inter, union, image=None, words=2, prior=None):
    row = {"sample_id": f"s{number}", "image_id": number if image is None else image}
    row |= {"expression": " ".join(["word"] * words), "inter_original": inter, "union_original": union}
    row["iou_original"] = inter / union if union else 0.0
    return row if prior is None else row | {"prior_iou_original": prior}


def scored(rows, **summary):
    return EvalData.of("val", {"num": len(rows), **summary}, rows)


def run(method, seed, oiou, fraction=0.05, draw="h", **record):
    data = EvalData.of("val", {"original": {"oiou": oiou}}, [])
    config = {"method": method, "seed": seed, "fraction": fraction, **record}
    return RunData(
        path=Path("x"),
        name=f"{method}{seed}",
        config=config,
        split={"hash": draw},
        metrics=[],
        evals={"val": data},
        done={},
    )


BUCKETS = [(1, 2), (3, 4), (5, 7), (8, 11), (12, 10**9)]


def test_lengths_of_few_sentences_are_joined_with_their_neighbours():
    def of(**counts):
        words = [int(name[1:]) for name, num in counts.items() for _ in range(num)]
        return scored([sentence(n, inter=1, union=2, words=w) for n, w in enumerate(words)])

    assert stats.length_ranges([of(w1=20, w3=20, w5=20, w8=20, w12=20)]) == BUCKETS
    assert stats.length_ranges([of(w1=30, w3=40, w5=30, w8=2)]) == [(1, 2), (3, 4), (5, 10**9)]
    assert stats.length_ranges([of(w1=30, w3=3, w5=30, w8=2)]) == [(1, 2), (3, 10**9)]
    assert stats.length_ranges([of(w1=3, w3=30), of(w1=30, w3=30)]) == [(1, 10**9)]
    assert stats.length_ranges([of(w1=3)]) == [(1, 10**9)]
    (first, last) = stats.by_length(of(w1=30, w3=3, w5=30, w8=2), [(1, 2), (3, 10**9)])
    assert (first.label, first.num, last.label, last.num) == ("1–2", 30, "3+", 35)


def test_length_bins_hold_every_sentence_once():
    rows = [sentence(n, inter=1, union=2, words=n) for n in range(1, 20)]
    bins = stats.by_length(scored(rows), BUCKETS)
    assert [item.label for item in bins] == ["1–2", "3–4", "5–7", "8–11", "12+"]
    assert [item.num for item in bins] == [2, 2, 3, 4, 8]


def test_length_bin_scores_are_sums_and_means():
    rows = [sentence(1, inter=1, union=10), sentence(2, inter=30, union=30)]
    (only,) = stats.by_length(scored(rows), BUCKETS)
    assert only.oiou == pytest.approx(31 / 40)
    assert only.miou == pytest.approx((0.1 + 1) / 2)
    assert only.prior_oiou is None and only.prior_miou is None
    counts = {"prior_inter_original": 6, "prior_union_original": 20}
    (only,) = stats.by_length(scored([row | counts | {"prior_iou_original": 0.3} for row in rows]), BUCKETS)
    assert (only.prior_oiou, only.prior_miou, only.oiou) == pytest.approx((12 / 40, 0.3, 31 / 40))


def test_an_empty_sentence_counts_as_a_word():
    assert [
        item.label for item in stats.by_length(scored([sentence(1, inter=1, union=2, words=0)]), BUCKETS)
    ] == ["1–2"]


def test_interval_holds_the_estimate_and_is_the_same_every_time():
    rows = [sentence(n, inter=n, union=12) for n in range(1, 12)]
    interval = stats.overall_interval(scored(rows))
    assert interval.value == pytest.approx(66 / 132)
    assert interval.low < interval.value < interval.high
    assert stats.overall_interval(scored(rows)) == interval


def test_interval_leaves_out_a_twentieth():
    found = stats._interval(500.0, np.arange(1001.0))
    assert (found.low, found.high) == (25.0, 975.0)


def test_an_unknown_count_has_no_interval():
    rows = [sentence(n, inter=n, union=12) for n in range(1, 12)]
    del rows[3]["union_original"]
    assert stats.overall_interval(scored(rows)) is None


def test_a_single_image_or_no_pixel_has_no_interval():
    for rows in (
        [sentence(n, inter=n, union=12, image=7) for n in range(5)],
        [sentence(n, inter=0, union=0) for n in range(5)],
    ):
        assert stats.overall_interval(scored(rows)) is None
        assert stats.paired_difference(scored(rows), scored(rows)) is None


def test_a_resample_without_a_pixel_counts_nothing():
    found = stats.overall_interval(scored([sentence(0, inter=0, union=0), sentence(1, inter=9, union=10)]))
    assert (found.low, found.value, found.high) == (0.0, 0.9, 0.9)


def test_interval_is_wider_when_sentences_share_images():
    alone = [sentence(n, inter=10 * (n % 2), union=10) for n in range(40)]
    shared = [sentence(n, inter=10 * (n // 10 % 2), union=10, image=n // 10) for n in range(40)]
    wide, narrow = stats.overall_interval(scored(shared)), stats.overall_interval(scored(alone))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_constant_gain_has_an_interval_of_no_width():
    first = [sentence(n, inter=4, union=10) for n in range(9)]
    second = [sentence(n, inter=5, union=10) for n in range(9)]
    difference = stats.paired_difference(scored(first), scored(second))
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_runs_scored_on_other_sentences_are_not_compared():
    first = [sentence(n, inter=4, union=10) for n in range(9)]
    assert stats.paired_difference(scored(first), scored(first[:-1])) is None
    other = [sentence(n, inter=4, union=10, image=n % 9) for n in range(1, 10)]
    assert stats.paired_difference(scored(first), scored(other)) is None
    moved = [row | {"image_id": row["image_id"] + 1} for row in first]
    assert stats.paired_difference(scored(first), scored(moved)) is None, "of other images"


def test_agreement_counts_the_four_cases():
    cases = [(8, 0.9), (8, 0.1), (1, 0.5), (1, 0.2), (1, 0.49)]
    rows = [sentence(n, inter=inter, union=10, prior=prior) for n, (inter, prior) in enumerate(cases)]
    unknown = sentence(8, inter=1, union=2, prior=0.9)
    del unknown["iou_original"]
    found = stats.agreement(scored([*rows, unknown, sentence(9, inter=1, union=2)]))
    assert (found.both, found.model_only, found.prior_only, found.neither) == pytest.approx(
        (0.2, 0.2, 0.2, 0.4)
    )
    assert found.num == 5
    at_the_border = stats.agreement(scored([sentence(0, inter=5, union=10, prior=0.5)]))
    assert at_the_border.both == 1.0


def test_spread_needs_two_seeds_of_one_method_and_share_of_labels():
    assert (
        stats.spreads([run("l2l", 1, 0.5), run("supervised", 2, 0.4), run("l2l", 2, 0.5, fraction=0.1)]) == []
    )
    (only,) = stats.spreads([run("l2l", 1, 0.5), run("l2l", 2, 0.6), run("supervised", 1, 0.4)])
    assert (only.variant, only.split, only.miou) == ("l2l", "val", None)
    assert (only.mean, only.sd) == pytest.approx((0.55, 0.1 / 2**0.5))


def test_spreads_are_of_the_scores_that_runs_have():
    """A split each; the mean of mIoU where all have one; a run that was not scored is no seed."""

    def seed(number, **evals):
        found = {split: EvalData.of(split, {"original": scores}, []) for split, scores in evals.items()}
        return dataclasses.replace(run("l2l", number, 0.0), evals=found)

    runs = [
        seed(1, val={"oiou": 0.5, "miou": 0.6}, testA={"oiou": 0.7, "miou": 0.8}, testB={"oiou": 0.1}),
        seed(2, val={"oiou": 0.7, "miou": 0.7}, testA={"oiou": 0.8}, testB={"miou": 0.1}),
    ]
    val, test_a = stats.spreads(runs)
    assert (val.split, val.values, val.miou) == ("val", (0.5, 0.7), pytest.approx(0.65))
    assert (test_a.split, test_a.values, test_a.miou) == ("testA", (0.7, 0.8), None)


def test_spread_is_of_runs_that_differ_in_their_seeds_alone():
    """Two recipes of one method are two variants; a place, a seed and how it was run make none."""

    def variant(recipe, seed, oiou, *overrides, root="a", **settings):
        config = {"method": "l2l", "seed": seed, "data": {"root": root, "dataset": "d"}, **settings}
        return run("l2l", seed, oiou, recipe=recipe, overrides=list(overrides), config=config)

    plain, other = variant("embedded", 22, 0.655), variant("embedded-confident", 23, 0.674, spm={"gain": 1})
    assert stats.spreads([plain, other]) == []
    again = variant("embedded", 22, 0.9)
    moved = variant("embedded", 23, 0.665, "seed=23", "data.root=b", root="b", runtime={"log_every": 3})
    shorter = variant("embedded", 24, 0.1, "steps=9", steps=9)
    (only,) = stats.spreads([plain, other, again, moved, shorter])
    assert (only.variant, only.seeds, only.values) == ("embedded", ("22", "23"), (0.655, 0.665))
    pair = [variant("embedded", seed, 0.1, f"seed={seed}", "steps=9", steps=9) for seed in (1, 2)]
    assert [one.variant for one in stats.spreads(pair)] == ["embedded steps=9"]
    common = ("steps=9", "fraction=0.1")
    several = [
        variant("embedded", seed, 0.1, *common, *more, steps=9, spm={"eps": len(more)})
        for seed in (1, 2)
        for more in ((), ("spm.eps=1",))
    ]
    assert [one.variant for one in stats.spreads(several)] == ["embedded", "embedded spm.eps=1"]


def test_grids_call_their_methods_as_they_do():
    def cells(grid, called, gain):
        config = {"method": "l2l", "spm": {"gain": gain}}
        runs = [run("l2l", seed, 0.5, recipe="embedded", config=config) for seed in (1, 2)]
        return [dataclasses.replace(one, grid=grid, called=called) for one in runs]

    first, second = cells("a", "Ours", 1), cells("b", "Ours", 2)
    assert [one.variant for one in stats.spreads(first)] == ["Ours"]
    assert [one.variant for one in stats.spreads(first + second)] == ["a: Ours", "b: Ours"]
    alone = [dataclasses.replace(one, grid="", called="") for one in second]
    assert [one.variant for one in stats.spreads(first + alone)] == ["a: Ours", "embedded"]


def test_seeds_with_draws_of_their_own_have_a_spread_that_says_so():
    def drawn(seed, oiou, draw):
        config = {"method": "l2l", "seed": seed, "split_seed": seed - 22}
        changes = [f"seed={seed}", f"split_seed={seed - 22}"]
        return run("l2l", seed, oiou, draw=draw, recipe="embedded", overrides=changes, config=config)

    (only,) = stats.spreads([drawn(22, 0.5, "a"), drawn(23, 0.6, "b"), drawn(24, 0.7, "c")])
    assert (only.variant, only.values, only.num_draws) == ("embedded", (0.5, 0.6, 0.7), 3)
    (only,) = stats.spreads([run("l2l", 1, 0.5), run("l2l", 2, 0.6)])
    assert only.num_draws == 1


def test_resampling_weights_are_drawn_once_for_all_runs(monkeypatch):
    stats._resamples.cache_clear()
    drawn = []
    monkeypatch.setattr(stats, "rng", lambda *key: drawn.append(key) or rng(*key))
    for inter in (3, 4, 5):
        stats.overall_interval(scored([sentence(n, inter=inter, union=9) for n in range(5)]))
    assert len(drawn) == 1


def test_a_score_file_that_contradicts_its_sentences_is_named():
    rows = [sentence(n, inter=4, union=10) for n in range(9)]
    assert stats.summary_disagrees(scored(rows, original={"oiou": 0.4})) is None
    for written in (0.9, 0.395, 0.1):
        said = stats.summary_disagrees(scored(rows, original={"oiou": written}))
        assert f"{written:.4f} in the score file but 0.4000" in said
    assert stats.summary_disagrees(scored(rows, original={"oiou": 0.401})) is None, "rounded"
    assert "missing or empty" in stats.summary_disagrees(EvalData.of("val", {"num": 9}, []))
    assert "counts 9 sentences" in stats.summary_disagrees(EvalData.of("val", {"num": 9}, rows[:8]))
