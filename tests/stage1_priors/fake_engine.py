"""Engines that need no model: answers are a pure function of the request."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shared.seeding import rng
from stage1_priors.edges import Token
from stage1_priors.engine import Answer, EngineFailed, Request, failed_answer

CONFIG = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 5,
    "vision_config": {"patch_size": 14, "spatial_merge_size": 2},
}


def write_model_folder(folder: Path, *, min_pixels: int = 12544, max_pixels: int = 12544) -> Path:
    """A folder that passes for a model wherever no engine opens it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "patch_size": 14, "merge_size": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(limits))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(b"weights")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


def box_answer(box: tuple[int, int, int, int], prob: float = 0.9) -> Answer:
    """A well-formed answer, one token per number, the rest of the probability on the next integer up."""
    pieces = ['[{"bbox_2d": [', *", ".join(str(value) for value in box).split(" "), '], "label": "x"}]']
    tokens = []
    for piece in pieces:
        for part in (piece[:-1], ",") if piece.endswith(",") else (piece,):
            chosen, other = math.log(prob), math.log(1 - prob)
            alternatives = ((part, chosen), (str(int(part) + 1), other)) if part.isdecimal() else ()
            tokens.append(
                Token(text=part, logprob=chosen if part.isdecimal() else 0.0, alternatives=alternatives)
            )
    text = pieces[0] + ", ".join(str(value) for value in box) + pieces[-1]
    return Answer(text=text, tokens=tuple(tokens), num_tokens=len(tokens), finish_reason="stop")


def random_box_answer(request: Request) -> Answer:
    """A box drawn from the request's content."""
    generator = rng("fake", request.expression, int(np.asarray(request.image, np.int64).sum()))
    x1, y1 = (int(value) for value in generator.integers(0, 70, 2))
    width, height = (int(value) for value in generator.integers(5, 40, 2))
    return box_answer((x1, y1, x1 + width, y1 + height), prob=float(generator.uniform(0.5, 0.95)))


def seen_box_px(request: Request) -> tuple[int, int, int, int] | None:
    """The box of what differs from the image's corner colour: right on scenes with one object."""
    pixels = np.asarray(request.image, np.int64)
    differs = np.abs(pixels - pixels[:4, :4].mean((0, 1))).sum(2) > 90
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def seen_box_answer(request: Request) -> Answer:
    """That box in Qwen2.5-VL's notation."""
    box = seen_box_px(request)
    if box is None:
        return Answer(text="There is nothing.", num_tokens=4, finish_reason="stop")
    return box_answer(box)


class FakeEngine:
    """Answers with `answer_of(request)`; an exception raised there fails the request, `EngineFailed` the engine."""

    def __init__(
        self, answer_of: Callable[[Request], Answer] = random_box_answer, delay_s: float = 0.0
    ) -> None:
        self.answer_of, self.delay_s = answer_of, delay_s
        self.num_requests, self.num_started, self.closed = 0, 0, False

    def submit(self, requests):
        return requests

    def collect(self, requests):
        if self.delay_s:
            time.sleep(self.delay_s)
        self.num_requests += len(requests)
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            return self.answer_of(request)
        except EngineFailed:
            raise
        except Exception as error:
            return failed_answer(error)

    def cache_hits(self):
        return {}

    def close(self):
        self.closed = True

    def factory(self, *_arguments):
        """Stands for an engine class."""
        self.num_started += 1
        return self


def engine_stopped_after(num: int) -> FakeEngine:
    """One that Ctrl-C ends in the call in which it is asked more than `num` requests."""
    engine = FakeEngine()

    def answer(request: Request) -> Answer:
        if engine.num_requests > num:
            raise KeyboardInterrupt
        return random_box_answer(request)

    engine.answer_of = answer
    return engine
