"""Batched `generate` of Transformers: the reference vLLM is held against, and for models vLLM cannot serve."""

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.own_device import own_device
from stage1_priors.config import EngineConfig, MllmConfig
from stage1_priors.edges import Token
from stage1_priors.engine import Answer, EngineFailed, Request, check_image_tokens, failed_answer, taken_apart
from stage1_priors.families import Family, image_token_id_of


class TransformersEngine:
    """Batched `generate` of Transformers: the reference vLLM is held against, and for models vLLM cannot serve."""

    def __init__(self, folder: Path, family: Family, model: MllmConfig, engine: EngineConfig) -> None:
        """Load model and processor from local files only."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
        from transformers.utils import logging

        if engine.quiet:
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        self._family, self._batch_size, self._top = family, engine.batch_size, model.top_logprobs
        self._num_samples, self._temperature = model.num_samples, model.sample_temperature
        self._image_token_id = image_token_id_of(folder)
        self._device = own_device()
        self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._processor.tokenizer.padding_side = "left"
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, model.dtype), local_files_only=True, use_safetensors=True
        )
        self._model: Any = loaded.to(self._device).eval()
        tokenizer = self._processor.tokenizer
        stop = self._model.generation_config.eos_token_id
        stop_ids = stop if isinstance(stop, list) else [stop]
        self._stop_ids = sorted({token for token in (*stop_ids, tokenizer.eos_token_id) if token is not None})
        # What a question leaves unsaid would be taken from the model's own file: a repetition penalty, for example.
        self._model.generation_config = GenerationConfig()
        self._generation = GenerationConfig(
            do_sample=False,
            max_new_tokens=model.max_tokens,
            eos_token_id=self._stop_ids,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._stop_ids[0],
        )

    def submit(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Nothing yet: a batch is generated as a whole, from prompt to end."""
        return requests

    def collect(self, submitted: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order; a batch that fails is taken apart, and costs no other.

        Raises:
            EngineFailed: The GPU failed, and does nothing more for this process.
        """
        answers: list[Answer] = []
        for start in range(0, len(submitted), self._batch_size):
            answers += taken_apart(self._generate_batch, submitted[start : start + self._batch_size])
        return answers

    def _generate_batch(self, requests: Sequence[Request]) -> list[Answer]:
        prompts = [
            self._processor.apply_chat_template(
                self._family.messages(request.expression, request.image),
                tokenize=False,
                add_generation_prompt=True,
            )
            for request in requests
        ]
        inputs = self._processor(
            text=prompts, images=[request.image for request in requests], padding=True, return_tensors="pt"
        ).to(self._device)
        seen_B = (inputs["input_ids"] == self._image_token_id).sum(1).tolist()
        watch = TokenWatch(self._top) if self._top else None
        new_BT = self._model_answers(inputs, [] if watch is None else [watch])
        known = [()] * len(requests) if watch is None else watch.tokens()
        answers = [self._answer(ids, tokens) for ids, tokens in zip(new_BT, known, strict=True)]
        for index in range(self._num_samples):
            noise = keyed_noise([request.seed + index for request in requests], self._temperature)
            answers = [
                replace(answer, samples=(*answer.samples, self._text(ids)))
                for answer, ids in zip(answers, self._model_answers(inputs, [noise]), strict=True)
            ]
        return [
            _checked(seen, request, answer)
            for seen, request, answer in zip(seen_B, requests, answers, strict=True)
        ]

    def _model_answers(self, inputs: Any, processors: list[Any]) -> list[list[int]]:
        """Ids of the new tokens of each prompt, filled up to one length."""
        import torch

        try:
            with torch.inference_mode():
                ids_BT = self._model.generate(
                    **inputs, generation_config=self._generation, logits_processor=processors
                )
                return ids_BT[:, inputs["input_ids"].shape[1] :].tolist()
        except getattr(torch, "AcceleratorError", ()) as error:  # since torch 2.8; out of memory is none
            raise EngineFailed(
                f"the GPU failed at work on a batch: {error}. Finished shards are kept and the same command goes on"
            ) from error

    def _kept(self, ids: list[int]) -> tuple[list[int], str]:
        """The tokens up to the first that ends an answer, and the reason why they end."""
        stops = [index for index, token in enumerate(ids) if token in self._stop_ids]
        return (ids[: stops[0] + 1], "stop") if stops else (ids, "length")

    def _text(self, ids: list[int]) -> tuple[str, str]:
        kept, reason = self._kept(ids)
        return self._processor.tokenizer.decode(kept, skip_special_tokens=True), reason

    def _answer(self, ids: list[int], known: "Sequence[Known]") -> Answer:
        tokenizer = self._processor.tokenizer
        ids, finish_reason = self._kept(ids)
        return Answer(
            text=tokenizer.decode(ids, skip_special_tokens=True),
            tokens=tuple(
                Token(
                    text=tokenizer.decode([token]),
                    logprob=logprob,
                    alternatives=tuple((tokenizer.decode([other]), value) for other, value in best),
                )
                for token, (logprob, best) in zip(
                    ids, known, strict=False
                )  # what follows the end is no answer
            ),
            num_tokens=len(ids),
            finish_reason=finish_reason,
        )

    def cache_hits(self) -> dict[str, float]:
        """There are no caches."""
        return {}

    def close(self) -> None:
        """Free the model."""
        self._model = self._processor = None
        gc.collect()


def _checked(seen: int, request: Request, answer: Answer) -> Answer:
    """The answer, unless the image was resized again."""
    try:
        check_image_tokens(seen, request)
    except RuntimeError as error:
        return failed_answer(error)
    return answer


Known = tuple[float, list[tuple[int, float]]]
"""Of one token of an answer: its log-probability; id and log-probability of the best, best first."""


class TokenWatch:
    """A logits processor that changes nothing and keeps what is wanted of each step of a greedy answer.

    All logits of all steps would be 150 MB an answer of 96 tokens at a vocabulary of 152,000, several times over.
    """

    def __init__(self, top: int) -> None:
        """Keep the `top` best of each step, at least 1."""
        self._top = top
        self._steps: list[tuple[Any, Any, Any]] = []

    def __call__(self, ids_BT: Any, logit_BV: Any) -> Any:
        """The logits [B, V] as they are."""
        logprob_BV = logit_BV.float().log_softmax(-1)
        chosen_B = logprob_BV.gather(1, logit_BV.argmax(-1, keepdim=True))[:, 0]
        self._steps.append((chosen_B, *logprob_BV.topk(self._top, dim=-1)))
        return logit_BV

    def tokens(self) -> list[list[Known]]:
        """What is known of each step's token, by row of the batch."""
        steps = [[part.tolist() for part in step] for step in self._steps]
        num = len(steps[0][0]) if steps else 0
        return [
            [(chosen[row], list(zip(best[row], values[row], strict=True))) for chosen, values, best in steps]
            for row in range(num)
        ]


def keyed_noise(seeds: Sequence[int], temperature: float) -> Callable[[Any, Any], Any]:
    """A logits processor under which the arg-max is a draw from softmax(logits / temperature).

    It adds Gumbel noise, row by row from a generator of its own, so that a row's draw does not depend on the batch.

    Args:
        seeds: One per row of the batch.
        temperature: Above 0.

    Returns:
        (token ids [B, T], logits [B, V]) -> float64 logits [B, V].
    """
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def process(ids_BT: Any, logit_BV: Any) -> Any:
        noise_BV = torch.stack(
            [torch.rand(logit_BV.shape[1], dtype=torch.float64, generator=one) for one in generators]
        )
        gumbel_BV = -torch.log(-torch.log(noise_BV.clamp(min=1e-300)))
        return logit_BV.double() / temperature + gumbel_BV.to(logit_BV.device)

    return process
