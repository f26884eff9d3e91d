"""Ceilings on counts that are made up; what a run makes of them is in `test_run`."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.types import STATUS_CODES, AnswerStatus
from stage1_priors.ceilings import check_ceilings, shares_of, told_ceilings

OK, NO_BOX, IMAGE_ERROR, ENGINE_ERROR = (
    AnswerStatus.OK,
    AnswerStatus.NO_BOX,
    AnswerStatus.IMAGE_ERROR,
    AnswerStatus.ENGINE_ERROR,
)


def told(config, tally, latest=()):
    """What is above a ceiling of a half; `latest` are the statuses of the last chunk."""
    half = apply_overrides(config, ["error_ceiling=0.5", "answer_failure_ceiling=0.5"])
    samples = [SimpleNamespace(sample_id=f"s{row}", file_name=f"{row}.jpg") for row in range(len(latest))]
    rows = SimpleNamespace(
        status_B=np.array([STATUS_CODES[status] for status in latest], np.uint8),
        raw_text_B=tuple(f"text {row} " + 300 * "." for row in range(len(latest))),
    )
    found = told_ceilings(half, Counter(tally), samples, rows)
    if found:
        with pytest.raises(DataError, match="stopped: .* set (error|answer_failure)_ceiling=1 to go on"):
            check_ceilings(half, Counter(tally), samples, rows)
    else:
        check_ceilings(half, Counter(tally), samples, rows)
    return found


def test_a_share_has_to_be_above_its_ceiling(config):
    """Errors are of all rows, answers without a box of those that were answered."""
    assert told(config, {OK: 3, IMAGE_ERROR: 2, ENGINE_ERROR: 1}) == []
    assert told(config, {OK: 3, NO_BOX: 3, ENGINE_ERROR: 6}) == []
    (errors,) = told(config, {OK: 3, IMAGE_ERROR: 2, ENGINE_ERROR: 2})
    assert "4 of 7 rows had an error (ok 42.9%" in errors and "error_ceiling is 0.5" in errors
    (without,) = told(config, {OK: 3, NO_BOX: 4, ENGINE_ERROR: 6})
    assert "4 of 7 answers held no box" in without and "answer_failure_ceiling is 0.5" in without
    assert len(told(config, {NO_BOX: 1, ENGINE_ERROR: 2})) == 2


def test_the_latest_failure_of_that_kind_is_shown_in_few_words(config):
    (said,) = told(config, {ENGINE_ERROR: 9}, [ENGINE_ERROR, OK, IMAGE_ERROR, NO_BOX])
    assert "Latest: s2 (2.jpg) image_error: 'text 2 ..." in said and len(said) < 400
    (said,) = told(config, {ENGINE_ERROR: 9}, [ENGINE_ERROR, OK])
    assert "Latest: s0 (0.jpg) engine_error" in said
    (said,) = told(config, {ENGINE_ERROR: 9}, [OK, NO_BOX])
    assert said.endswith("None in the latest chunk")


def test_shares_are_named_by_size():
    assert shares_of(Counter({NO_BOX: 1, OK: 3})) == "ok 75.0%, no_box 25.0%" and shares_of(Counter()) == ""
