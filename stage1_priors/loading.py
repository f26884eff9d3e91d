"""Rows on their way to the engine: images read and resized, each once, and questions submitted."""

from dataclasses import dataclass

from PIL import Image

from shared.errors import DataError
from shared.types import Sample
from stage1_priors.answers import processed_image, request_about
from stage1_priors.attempts import Attempts
from stage1_priors.chunks import Chunk
from stage1_priors.engine import Engine, Request, Submitted, submit_isolated
from stage1_priors.job import Job
from stage1_priors.proposers import Proposer


@dataclass(frozen=True, kw_only=True)
class LoadedChunk:
    """A chunk with the images read and resized that the model is asked about."""

    chunk: Chunk
    """The rows."""
    requests: list[Request | None]
    """One per asked row; None where the image could not be read."""
    errors: list[str]
    """Why there is no request, per asked row."""
    images: list[Image.Image | None]
    """What the proposer has kept of each asked row's image."""
    submitted: Submitted
    """The requests there are, in the engine's hands."""
    is_given_up: bool = False
    """Whether its only row is not asked any more."""


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """What is left of an image that was read: the original itself is let go of."""

    processed: Image.Image
    """What the model sees."""
    kept: Image.Image | None
    """What the proposer has kept."""


def load_image(job: Job, proposer: Proposer, sample: Sample) -> LoadedImage | str:
    """Read and resize the image of a sample; why it cannot be read if it cannot."""
    try:
        original = job.dataset.image(sample)
    except DataError as error:
        return str(error)
    return LoadedImage(
        processed=processed_image(original, job.family, job.rules), kept=proposer.kept(original)
    )


def load_noted(
    job: Job, engine: Engine, proposer: Proposer, attempts: Attempts, chunk: Chunk, alone: bool
) -> LoadedChunk:
    """`load_chunk`, once it is noted that a shard is begun or a row asked alone; a row that is given up is not read."""
    if chunk.is_first:
        attempts.begin(chunk.shard)
    if alone:
        (sample,) = chunk.asked
        if attempts.is_given_up(chunk.shard, sample.sample_id):
            nothing = Submitted(requests=[])
            return LoadedChunk(
                chunk=chunk, requests=[None], errors=[""], images=[None], submitted=nothing, is_given_up=True
            )
        attempts.ask(chunk.shard, sample.sample_id)
    return load_chunk(job, engine, proposer, chunk)


def load_chunk(job: Job, engine: Engine, proposer: Proposer, chunk: Chunk) -> LoadedChunk:
    """Read and resize the images a chunk asks about, each image once, and submit its requests.

    An unreadable image is an error of its rows only.
    """
    loaded: dict[str, LoadedImage | str] = {}
    requests: list[Request | None] = []
    errors: list[str] = []
    kept: list[Image.Image | None] = []
    for sample in chunk.asked:
        if sample.file_name not in loaded:
            loaded[sample.file_name] = load_image(job, proposer, sample)
        image = loaded[sample.file_name]
        if isinstance(image, str):
            requests.append(None)
            errors.append(image)
            kept.append(None)
            continue
        requests.append(
            request_about(image.processed, sample.expression, job.family, job.rules, sample.sample_id)
        )
        errors.append("")
        kept.append(image.kept)
    submitted = submit_isolated(engine, [request for request in requests if request is not None])
    return LoadedChunk(chunk=chunk, requests=requests, errors=errors, images=kept, submitted=submitted)
