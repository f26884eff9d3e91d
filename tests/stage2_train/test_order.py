import dataclasses
from pathlib import Path

import pytest

from shared.refer import load_refer
from shared.types import Sample
from stage2_train.order import draw, group_by_ref, micro_positions

NUM_REFS = 40


def test_every_cycle_holds_every_reference_once(mini_root: Path) -> None:
    refs = group_by_ref(load_refer(mini_root / "data", "refshapes", "unc").samples("train"))
    for cycle in range(3):
        drawn = [draw(5, "unlabelled", cycle * len(refs) + i, refs) for i in range(len(refs))]
        assert sorted(d.sample.ref_id for d in drawn) == sorted(ref[0].ref_id for ref in refs)
        assert {d.cycle for d in drawn} == {cycle}
    orders = {tuple(draw(s, "unlabelled", i, refs).sample.ref_id for i in range(len(refs))) for s in range(3)}
    assert len(orders) == 3


def test_every_cycle_and_every_stream_has_an_order_of_its_own(mini_root: Path) -> None:
    refs = group_by_ref(load_refer(mini_root / "data", "refshapes", "unc").samples("train"))
    orders = {
        tuple(draw(5, stream, cycle * len(refs) + i, refs).sample.ref_id for i in range(len(refs)))
        for stream in ("labelled", "unlabelled")
        for cycle in range(3)
    }
    assert len(orders) == 6


def test_references_to_one_object_are_drawn_apart(mini_root: Path) -> None:
    sample = load_refer(mini_root / "data", "refshapes", "unc").samples("train")[0]
    other = dataclasses.replace(sample, ref_id=sample.ref_id + 1)
    assert group_by_ref([sample, other, sample]) == [(sample, sample), (other,)]


def test_sentences_are_drawn_from_the_reference(mini_root: Path) -> None:
    refs = group_by_ref(load_refer(mini_root / "data", "refshapes", "unc").samples("train"))
    longest = max(range(len(refs)), key=lambda i: len(refs[i]))
    only = [refs[longest]]
    seen = {draw(0, "unlabelled", position, only).sample.sent_id for position in range(60)}
    assert seen == {sample.sent_id for sample in refs[longest]}


@pytest.mark.parametrize(("accumulation", "num_processes"), [(1, 1), (2, 1), (1, 4), (3, 2), (2, 6)])
def test_shares_join_to_the_global_batch(accumulation: int, num_processes: int) -> None:
    joined = [
        position
        for micro in range(accumulation)
        for rank in range(num_processes)
        for position in micro_positions(
            5, micro, rank, batch=24, accumulation=accumulation, num_processes=num_processes
        )
    ]
    assert joined == list(range(120, 144))


def sentence(ref: int, number: int) -> Sample:
    return Sample(
        sample_id=f"d.s.{ref}.{number}",
        image_id=ref,
        file_name=f"{ref}.png",
        height=4,
        width=4,
        ref_id=ref,
        ann_id=ref,
        sent_id=number,
        expression="red star",
        split="train",
    )


def chosen(seed: int, stream: str, cycle: int) -> dict[int, int]:
    """Which of two sentences is drawn of each reference."""
    refs = [(sentence(ref, 0), sentence(ref, 1)) for ref in range(NUM_REFS)]
    drawn = (draw(seed, stream, cycle * NUM_REFS + place, refs).sample for place in range(NUM_REFS))
    return {sample.ref_id: sample.sent_id for sample in drawn}


def test_the_sentence_is_drawn_anew_for_each_reference_cycle_stream_and_seed() -> None:
    first = chosen(0, "unlabelled", 0)
    assert {*first.values()} == {0, 1} and first == chosen(0, "unlabelled", 0)
    for other in ((0, "unlabelled", 1), (0, "labelled", 0), (1, "unlabelled", 0)):
        assert chosen(*other) != first, other
