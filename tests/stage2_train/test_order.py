"""Which sentence of a reference is drawn; the order of references is held by the tests of the batches (test_data)."""

from shared.types import Sample
from stage2_train.order import draw

NUM_REFS = 40


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
