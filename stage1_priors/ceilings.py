"""When a run has failed too often: something is wrong with the whole of it, not with single rows."""

from collections import Counter
from collections.abc import Sequence

from shared.errors import DataError
from shared.types import STATUS_BY_CODE, AnswerStatus, Sample
from stage1_priors.answers import AnswerRows
from stage1_priors.config import PriorsConfig


def check_ceilings(
    config: PriorsConfig, tally: Counter[AnswerStatus], samples: Sequence[Sample], rows: AnswerRows
) -> None:
    """Stop a run whose failures say that something is wrong with the whole of it.

    Raises:
        DataError: A share above its ceiling; it names the shares and the latest failure.
    """
    errors = (AnswerStatus.IMAGE_ERROR, AnswerStatus.ENGINE_ERROR)
    num_errors = sum(tally[status] for status in errors)
    num_answers = tally.total() - num_errors
    num_without = sum(count for status, count in tally.items() if status not in errors and not status.has_box)
    for what, part, whole, name, ceiling in (
        ("rows had an error", num_errors, tally.total(), "error_ceiling", config.error_ceiling),
        (
            "answers held no box",
            num_without,
            num_answers,
            "answer_failure_ceiling",
            config.answer_failure_ceiling,
        ),
    ):
        if part > ceiling * whole:
            raise DataError(
                f"stopped: {part} of {whole} {what} ({shares_of(tally)}); {name} is {ceiling}. "
                f"{_last_failure(samples, rows)}. Finished shards are kept; set {name}=1 to go on regardless"
            )


def _last_failure(samples: Sequence[Sample], rows: AnswerRows) -> str:
    for row in range(len(samples) - 1, -1, -1):
        status = STATUS_BY_CODE[int(rows.status_B[row])]
        if not status.has_box:
            where = f"{samples[row].sample_id} ({samples[row].file_name})"
            return f"Latest: {where} {status}: {rows.raw_text_B[row][:120]!r}"
    return "None in the latest chunk"


def shares_of(tally: Counter[AnswerStatus]) -> str:
    """What became of rows, most frequent first, for a person."""
    whole = max(tally.total(), 1)
    return ", ".join(f"{status} {count / whole:.1%}" for status, count in tally.most_common())
