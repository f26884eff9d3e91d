"""Where SAM runs: in this process, or in one of its own. Imports no torch until it must.

On a CPU an engine and SAM in one process share Python's lock, and their teams of threads wait for each other: two
threads take SAM several times as long as one does. In a process of its own SAM has one thread, if not asked to have
more (`proposer.threads`), reads its weights while the engine reads its own, and with one gives the same bits whatever
the number of workers and of cores. Both ends of the pipe are ours; nothing that comes from a file is unpickled.
"""

import signal
import traceback
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from shared.errors import DataError
from shared.stopping import STOP_SIGNALS
from stage1_priors.config import ProposerConfig
from stage1_priors.proposers import Prompts, Proposals
from stage1_priors.sam_view import SamView

if TYPE_CHECKING:
    from stage1_priors.sam import SamProposer

END_S = 10.0
"""Time a process has to end once its pipe is closed."""


class _Keeping:
    """What both have in common: images are kept at the size that SAM sees."""

    def __init__(self, config: ProposerConfig, folder: Path) -> None:
        """Look how SAM sees images."""
        self._view = SamView(config.kind, folder)

    def kept(self, image: Image.Image) -> Image.Image:
        """The image, or as much of it as SAM sees."""
        return self._view.kept(image)

    def kept_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Its height and width."""
        return self._view.kept_hw(size_hw)


class SamHere(_Keeping):
    """SAM in this process."""

    def __init__(self, config: ProposerConfig, folder: Path) -> None:
        """Keep what `load` needs."""
        self._config, self._folder = config, folder
        super().__init__(config, folder)
        self._sam: SamProposer | None = None

    def load(self) -> None:
        """Load the model; raises DataError for weights that do not cover it."""
        from stage1_priors.sam import SamProposer

        self._sam = SamProposer(self._config, self._folder)

    def propose(self, prompts: Prompts) -> Proposals:
        """Soft masks of all rows, in order."""
        assert self._sam is not None, "propose before load"
        return self._sam.propose(prompts)

    def close(self) -> None:
        """Free the model."""
        if self._sam is not None:
            self._sam.close()


class SamApart(_Keeping):
    """SAM in a process of its own, which ends with this one, however this one ends."""

    def __init__(self, config: ProposerConfig, folder: Path) -> None:
        """Start the process; it loads the model meanwhile."""
        super().__init__(config, folder)
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config, folder), name="sam", daemon=True)
        self._process.start()
        theirs.close()

    def load(self) -> None:
        """Wait until the model is loaded.

        Raises:
            DataError: Its weights do not cover it, or the process is gone.
        """
        self._answer()

    def propose(self, prompts: Prompts) -> Proposals:
        """Soft masks of all rows, in order.

        Raises:
            ProposerFailed: The model failed there, on images that the message names.
            DataError: The process is gone.
            RuntimeError: What else went wrong there, with its traceback.
        """
        try:
            # Edges are large, and SAM has no use for them.
            self._ours.send(replace(prompts, edges_B=(None,) * len(prompts.edges_B)))
        except OSError as error:
            raise self._gone() from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer, error, details = self._ours.recv()
        except (EOFError, OSError) as lost:
            raise self._gone() from lost
        if isinstance(error, DataError):
            raise error
        if error is not None:
            raise RuntimeError(f"SAM's process: {error}\n{details}")
        return answer

    def _gone(self) -> DataError:
        self._process.join(END_S)
        status = self._process.exitcode
        how = (
            f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with {status}"
        )
        return DataError(f"SAM's process {how}. Finished shards are kept; the same command goes on")

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(connection: Connection, config: ProposerConfig, folder: Path) -> None:
    """What the process does: load, then answer until the other end of the pipe is gone."""
    # Sent to both processes, by a terminal or Slurm; the run ends this one.
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    try:
        sam = _loaded(config, folder)
    except Exception as error:
        connection.send((None, *_told(error)))
        return
    try:
        connection.send((None, None, ""))
        while True:
            prompts = connection.recv()
            try:
                answer: tuple[Any, Any, str] = (sam.propose(prompts), None, "")
            except Exception as error:
                answer = (None, *_told(error))
            connection.send(answer)
    except (EOFError, OSError):
        return


def _loaded(config: ProposerConfig, folder: Path) -> "SamProposer":
    import torch
    from transformers.utils import logging

    from stage1_priors.sam import SamProposer

    torch.set_num_threads(config.threads)
    logging.disable_progress_bar()
    return SamProposer(config, folder)


def _told(error: Exception) -> tuple[Exception | str, str]:
    """An error as it travels: one that the user can mend as it is, any other as text."""
    if isinstance(error, DataError):
        return error, ""
    return f"{type(error).__name__}: {error}", traceback.format_exc()
