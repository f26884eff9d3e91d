"""Shards that were begun and not finished: asked last, then row by row, then without the row that ends the engine.

A process that dies at work (a signal, a fault of the GPU, vLLM's core) cannot say on which row. So a shard is noted
before its first question, in `attempts/<k>.json` of the store, and the note goes once the shard is written. Shards that
were begun most often come last, so that one bad row holds up no other shard. One that was begun `PATIENCE` times is
asked row by row, each row noted first; a row on which that ended the process as often is not asked any more. A run that
ends in order (a signal, Ctrl-C, full memory, wrong data) leaves the notes as it found them.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import DataError
from shared.store.layout import StoreHeader, read_header
from shared.store.publish import disk_errors, publish_file, remove_synced, seal, unseal
from stage1_priors.engine import EngineFailed
from stage1_priors.memory import MemoryFull
from stage1_priors.proposers import ProposerFailed

PATIENCE = 2
"""Ends without a reason that can be named, of a shard's or of a row's asking, before something is changed."""
GIVEN_UP = "the engine or the mask proposer failed on it twice"
"""Reason of a row that is not asked any more."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What is noted of a shard."""

    begun: int = 0
    """How often it was begun and not finished."""
    asking: str = ""
    """Sample id of the row that was last asked alone; empty if none was."""
    ended_on: dict[str, int] = field(default_factory=dict)
    """How often the process ended when a row was asked alone, by sample id."""


def read_attempt(header: StoreHeader, shard: int) -> Attempt:
    """What is noted of a shard; nothing is as good as a damaged note."""
    file = header.attempt_path(shard)
    try:
        return Attempt(**unseal(file.read_bytes(), file))
    except (DataError, OSError, TypeError):
        return Attempt()


class Attempts:
    """The notes of the shards that a process is to ask about; a context, which puts back those that did not fail."""

    def __init__(self, path: Path, shards: Sequence[int]) -> None:
        """Read what is noted of some shards of a store."""
        self._header = read_header(path)
        self._found = {shard: read_attempt(self._header, shard) for shard in shards}
        self._begun: dict[int, Attempt] = {}

    def __enter__(self) -> Self:
        """Nothing is noted yet."""
        return self

    def usual(self) -> list[int]:
        """Shards that are asked as usual, those begun most often last."""
        usual = [shard for shard, one in self._found.items() if one.begun < PATIENCE]
        return sorted(usual, key=lambda shard: self._found[shard].begun)

    def suspect(self) -> list[int]:
        """Shards that are asked row by row, after all others."""
        return sorted(self._found.keys() - {*self.usual()}, key=lambda shard: self._found[shard].begun)

    def begin(self, shard: int) -> None:
        """Note that a shard is begun; raises DataError for a disk that cannot be written."""
        before = self._found[shard]
        ended_on = dict(before.ended_on)
        if before.asking:
            ended_on[before.asking] = ended_on.get(before.asking, 0) + 1
        self._note(shard, Attempt(begun=before.begun + 1, ended_on=ended_on))

    def is_given_up(self, shard: int, sample_id: str) -> bool:
        """Whether a row of a shard that is begun is not to be asked."""
        return self._begun[shard].ended_on.get(sample_id, 0) >= PATIENCE

    def ask(self, shard: int, sample_id: str) -> None:
        """Note the row that is asked alone; raises DataError for a disk that cannot be written."""
        self._note(shard, replace(self._begun[shard], asking=sample_id))

    def end(self, shard: int) -> None:
        """Forget a shard that is written."""
        remove_synced(self._header.attempt_path(shard))
        del self._begun[shard]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the notes of shards in hand if something failed at work; else put back what was found."""
        in_order = isinstance(error, DataError | MemoryFull) and not isinstance(
            error, EngineFailed | ProposerFailed
        )
        if isinstance(error, Exception) and not in_order:
            return
        with contextlib.suppress(OSError):
            for shard in self._begun:
                if (found := self._found[shard]) == Attempt():
                    remove_synced(self._header.attempt_path(shard))
                else:
                    publish_file(self._header.attempt_path(shard), seal(asdict(found)))

    def _note(self, shard: int, attempt: Attempt) -> None:
        file = self._header.attempt_path(shard)
        with disk_errors(self._header.path, f"the note that shard {shard} is begun"):
            file.parent.mkdir(exist_ok=True)
            publish_file(file, seal(asdict(attempt)))
        self._begun[shard] = attempt
