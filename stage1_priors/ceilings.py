"""When a run has failed too often: something is wrong with the whole of it, not with single rows."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from shared.errors import DataError
from shared.types import STATUS_BY_CODE, AnswerStatus, Sample
from stage1_priors.answers import AnswerRows
from stage1_priors.config import PriorsConfig
from stage1_priors.reuse import FAILED

WITHOUT_BOX = frozenset(status for status in AnswerStatus if not status.has_box).difference(FAILED)
"""What became of rows whose answer is of no use."""


def check_ceilings(
    config: PriorsConfig, tally: Counter[AnswerStatus], samples: Sequence[Sample], rows: AnswerRows
) -> None:
    """Stop a run whose failures say that something is wrong with the whole of it.

    Raises:
        DataError: A share above its ceiling; it names the shares and the latest failure of that kind.
    """
    for name, told in _above(config, tally, samples, rows):
        raise DataError(f"stopped: {told}. Finished shards are kept; set {name}=1 to go on regardless")


def told_ceilings(
    config: PriorsConfig, tally: Counter[AnswerStatus], samples: Sequence[Sample], rows: AnswerRows
) -> list[str]:
    """What would stop a run of all pairs, for a person who tries the first ones; empty if nothing would."""
    return [
        f"a run of all pairs stops at such a share: {told}"
        for _, told in _above(config, tally, samples, rows)
    ]


def _above(
    config: PriorsConfig, tally: Counter[AnswerStatus], samples: Sequence[Sample], rows: AnswerRows
) -> Iterator[tuple[str, str]]:
    """(name of a ceiling, what is above it) for each that is passed."""
    num_errors = sum(tally[status] for status in FAILED)
    num_without = sum(tally[status] for status in WITHOUT_BOX)
    for what, part, whole, name, kinds in (
        ("rows had an error", num_errors, tally.total(), "error_ceiling", FAILED),
        (
            "answers held no box",
            num_without,
            tally.total() - num_errors,
            "answer_failure_ceiling",
            WITHOUT_BOX,
        ),
    ):
        ceiling = getattr(config, name)
        if part > ceiling * whole:
            latest = _last_failure(samples, rows, kinds)
            yield name, f"{part} of {whole} {what} ({shares_of(tally)}); {name} is {ceiling}. {latest}"


def _last_failure(samples: Sequence[Sample], rows: AnswerRows, kinds: Collection[AnswerStatus]) -> str:
    for row in range(len(samples) - 1, -1, -1):
        status = STATUS_BY_CODE[int(rows.status_B[row])]
        if status in kinds:
            where = f"{samples[row].sample_id} ({samples[row].file_name})"
            return f"Latest: {where} {status}: {rows.raw_text_B[row][:120]!r}"
    return "None in the latest chunk"


def shares_of(tally: Counter[AnswerStatus]) -> str:
    """What became of rows, most frequent first, for a person."""
    whole = max(tally.total(), 1)
    return ", ".join(f"{status} {count / whole:.1%}" for status, count in tally.most_common())
