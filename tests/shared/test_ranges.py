"""Lists of numbers as text, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError
from shared.ranges import as_ranges, from_ranges


def test_neighbours_are_one_part():
    assert as_ranges([0, 1, 2, 5]) == "0-2,5" and as_ranges([7]) == "7" and as_ranges([]) == ""


@given(st.lists(st.integers(0, 60), unique=True, min_size=1).map(sorted))
def test_there_and_back(numbers):
    assert from_ranges(as_ranges(numbers), "--shards") == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1 - 2", "0x1", "1.5"])
def test_other_text_is_refused(text):
    with pytest.raises(DataError, match="--shards is .*, expected numbers such as 0-2,5"):
        from_ranges(text, "--shards")
