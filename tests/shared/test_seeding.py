"""Every draw hangs on these seeds: data, splits, batches and stores stay the same only while they do."""

import pytest

from shared.seeding import rng, seed_of, torch_generator


def test_seeds_are_those_of_before():
    """Written down once; a hash that Python salts anew in every process would differ here."""
    assert seed_of() == 6_510_301_506_637_419_378
    assert seed_of(0) == 3_581_690_635_855_307_741
    assert seed_of(22, "order", "labelled", 3) == 7_351_953_418_899_974_952
    assert rng(22, "order").integers(1000, size=4).tolist() == [916, 846, 840, 573]


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), ("1",)), ((1,), (1.0,)), ((1, 23), (12, 3)), (("a", "b"), ("ab",)), ((1, 2), (2, 1)), ((0,), ())],
)
def test_keys_that_look_alike_have_seeds_of_their_own(one, other):
    assert seed_of(*one) != seed_of(*other)
    assert rng(*one).random() != rng(*other).random()
    assert torch_generator(*one).initial_seed() != torch_generator(*other).initial_seed()


def test_seeds_fit_into_63_bits():
    """As every generator that is seeded with them takes; high bits are used."""
    seeds = [seed_of("bits", number) for number in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**62
