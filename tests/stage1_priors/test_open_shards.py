"""Shards that another run on the store writes meanwhile are not written twice."""

from stage1_priors.open_shards import OpenShards


def test_what_is_written_by_the_time_it_is_begun_is_left_out():
    written = set()
    shards = OpenShards([1, 3, 5, 7], written.__contains__)
    begun = iter(shards)
    assert next(begun) == 1
    written.add(3)
    assert list(begun) == [7, 5] and shards.others == [3]
    assert shards.line() == "another run on the same store wrote 1 shards meanwhile; one run is enough"


def test_a_run_alone_goes_in_order():
    shards = OpenShards(range(4), lambda _: False)
    assert list(shards) == [0, 1, 2, 3] and shards.line() == ""


def test_two_runs_side_by_side_meet_in_the_middle():
    """One begins every shard a moment after the other, and finds its first one written when it is to write it."""
    written, num_made = set(), 0
    runs = [OpenShards(range(20), written.__contains__) for _ in range(2)]
    begun = [iter(run) for run in runs]
    at_work = [next(one, None) for one in begun]
    while any(shard is not None for shard in at_work):
        for number, shard in enumerate(at_work):
            if shard is None:
                continue
            num_made += 1
            if not runs[number].is_others(shard):
                written.add(shard)
            at_work[number] = next(begun[number], None)
    assert written == set(range(20)) and num_made <= 22
