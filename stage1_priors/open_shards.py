"""The shards that a run is still to begin, where another run may be at work on the same store."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from shared.store.layout import read_header
from shared.store.marks import shard_is_done
from stage1_priors.job import Job


class OpenShards:
    """Shards of a run that are still to be begun; those that another run on the store has written by then are left out.

    They come in order, and from the end on once it is known that somebody else writes them too: two runs that go the
    same way side by side would do all work twice.

    Args:
        shards: The shards, in order.
        is_written: Whether a shard is whole.
    """

    def __init__(self, shards: Sequence[int], is_written: Callable[[int], bool]) -> None:
        self._left, self._is_written = deque(shards), is_written
        self.others: list[int] = []
        """Shards that somebody else wrote."""

    def __iter__(self) -> Iterator[int]:
        """The shards; each is looked at when it is asked for."""
        while self._left:
            shard = self._left.pop() if self.others else self._left.popleft()
            if not self.is_others(shard):
                yield shard

    def add(self, shards: Sequence[int]) -> None:
        """More of them, after those that are left."""
        self._left.extend(shards)

    def is_others(self, shard: int) -> bool:
        """Whether a shard that this run did not write is whole; it is noted then."""
        if written := self._is_written(shard):
            self.others.append(shard)
        return written

    def line(self) -> str:
        """What became of the shards of others, for a person; "" if there are none."""
        if not self.others:
            return ""
        return f"another run on the same store wrote {len(self.others)} shards meanwhile; one run is enough"


def open_shards(job: Job, shards: Sequence[int], *, rewriting: bool = False) -> OpenShards:
    """Some shards of a run's store, which is there; with `rewriting` they are whole, and written again all the same."""
    return OpenShards(
        shards, (lambda _: False) if rewriting else partial(shard_is_done, read_header(job.path))
    )
