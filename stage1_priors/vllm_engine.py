"""vLLM, one instance on one device. The only file that imports vLLM, and only inside the class."""

import gc
import itertools
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shared.json_files import read_json
from stage1_priors.config import EngineConfig, MllmConfig
from stage1_priors.edges import Token
from stage1_priors.engine import Answer, EngineFailed, Request, check_image_tokens, failed_answer
from stage1_priors.families import Family, image_token_id_of, size_rules_of


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Requests within vLLM."""

    requests: Sequence[Request]
    """The requests."""
    greedy: tuple[str, ...]
    """Keys of their greedy answers."""
    sampled: tuple[str, ...] = ()
    """Keys of their sampled answers; empty if none are asked for."""


class VllmEngine:
    """vLLM, one instance on one device."""

    def __init__(self, folder: Path, family: Family, model: MllmConfig, engine: EngineConfig) -> None:
        """Load the model. Environment variables that vLLM reads at import are set first, unless already set."""
        for name, value in self._environment(engine).items():
            os.environ.setdefault(name, value)
        with warnings.catch_warnings():
            if engine.quiet:
                warnings.simplefilter("ignore", FutureWarning)
                logging.getLogger("vllm").setLevel(logging.ERROR)  # it logs before it reads its environment
            self._load(folder, family, model, engine)

    def _load(self, folder: Path, family: Family, model: MllmConfig, engine: EngineConfig) -> None:
        from vllm import LLM, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._family, self._num_samples = family, model.num_samples
        self._image_token_id = image_token_id_of(folder)
        # Token ids alone: spelling out every alternative of every token, as vLLM would, takes a third of a tiny model's
        # time. `_piece` spells each token once.
        asked = partial(
            SamplingParams,
            max_tokens=model.max_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._params = asked(temperature=0.0, logprobs=model.top_logprobs or None, seed=0)
        self._sampled_params = partial(asked, n=model.num_samples, temperature=model.sample_temperature)
        self._pieces: dict[int, str] = {}
        self._numbers, self._rendering = itertools.count(), threading.Lock()
        self._waiting: deque[tuple[str, Any, Any]] = deque()
        self._outcomes: dict[str, Any] = {}
        self._failed: EngineFailed | None = None
        self._llm: Any = LLM(
            model=str(folder),
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            tensor_parallel_size=engine.gpus,
            load_format="safetensors",
            enforce_eager=engine.eager,
            gpu_memory_utilization=engine.gpu_memory,
            limit_mm_per_prompt={"image": 1, "video": 0},
            skip_mm_profiling=engine.eager,
            enable_prefix_caching=engine.caching,
            block_size=engine.block_size,
            mm_processor_cache_gb=engine.image_cache_gb if engine.caching else 0.0,
            disable_log_stats=False,
            use_tqdm_on_load=not engine.quiet,
            seed=0,
            **self._normalisation(folder),
            **self._largest_image(folder, family, model),
            **self._whole_prompts(),
        )
        self._tokenizer: Any = self._llm.get_tokenizer()

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

    @staticmethod
    def _largest_image(folder: Path, family: Family, model: MllmConfig) -> dict[str, Any]:
        """Keep vLLM from reserving memory for the largest image that the model's own files allow.

        It tries one when it starts, and what that takes is lost to its caches: 16,384 tokens of Qwen2.5-VL, where 1,280
        are the most that are asked about. Images come in their final size, so the processor changes none.
        """
        rules = size_rules_of(family, folder, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
        if not family.sized_by_pixels or rules.max_pixels == rules.processor_max_pixels:
            return {}
        limits = {"shortest_edge": rules.processor_min_pixels, "longest_edge": rules.max_pixels}
        return {"mm_processor_kwargs": {"size": limits}}

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
            # FlashInfer's sampler compiles itself with nvcc when vLLM starts, and ends vLLM where there is none. vLLM
            # itself takes another one for greedy and for seeded questions, and here are no others.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            # Kernels that oneDNN keeps for CPUs, one a shape: batches differ in tokens, and 1024 of them fill slowly.
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
        }
        if engine.eager:
            variables["TORCH_COMPILE_DISABLE"] = "1"
        if engine.quiet:
            variables |= {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        return variables

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Render the prompts and process their images; the thread that collects adds them to the batch as it goes.

        The greedy questions come first, then the sampled ones over the same, by then cached, prompts.

        Raises:
            EngineFailed: It failed earlier.
        """
        if self._failed is not None:
            raise self._failed
        with self._rendering:
            ticket = Ticket(requests=requests, greedy=self._queue(requests, [self._params] * len(requests)))
            if self._num_samples:
                params = [self._sampled_params(seed=request.seed) for request in requests]
                ticket = replace(ticket, sampled=self._queue(requests, params))
        return ticket

    def _queue(self, requests: Sequence[Request], params: Sequence[Any]) -> tuple[str, ...]:
        """Render prompts in the order in which they are added, which vLLM's cache of images relies on."""
        ids = []
        for request, asked in zip(requests, params, strict=True):
            ids.append(f"l2l-{next(self._numbers)}")
            try:
                self._waiting.append((ids[-1], self._render(request), asked))
            except Exception as error:
                self._refuse(ids[-1], error)
        return tuple(ids)

    def _render(self, request: Request) -> Any:
        """A prompt as `LLM.chat` makes it; too long a one is refused here, before others of its image are rendered.

        Raises:
            RuntimeError: The prompt with its image leaves no room for an answer.
        """
        (prompt,) = self._llm._preprocess_chat([self._conversation(request)])
        num_tokens, most = len(prompt["prompt_token_ids"]), self._llm.model_config.max_model_len
        if num_tokens >= most:
            raise RuntimeError(
                f"the prompt has {num_tokens} tokens, which leaves no room for an answer: model.max_model_len is {most}"
            )
        return prompt

    def _refuse(self, key: str, error: Exception) -> None:
        """Note why a request fails, and forget which images vLLM's core was sent.

        It prepares an image once and then only names it to the core. The image of a refused prompt counts as sent and
        never was, so that every later prompt of it would fail.
        """
        self._outcomes[key] = error
        self._llm.renderer.clear_mm_cache()

    def collect(self, submitted: Ticket) -> list[Answer]:
        """Let the engine work, on all that was submitted since too, until these requests are answered.

        Raises:
            EngineFailed: vLLM failed at work on its batch, now or earlier.
        """
        if self._failed is not None:
            raise self._failed
        keys = (*submitted.greedy, *submitted.sampled)
        while missing := [key for key in keys if key not in self._outcomes]:
            if not self._step() and missing[0] not in self._outcomes:
                self._outcomes[missing[0]] = RuntimeError(f"vLLM lost request {missing[0]}")
        greedy, sampled = (
            [self._outcomes.pop(key) for key in keys] for keys in (submitted.greedy, submitted.sampled)
        )
        return [
            self._answer_or_failure(request, outcomes)
            for request, *outcomes in zip(
                submitted.requests, greedy, *([sampled] if self._num_samples else []), strict=True
            )
        ]

    def _answer_or_failure(self, request: Request, outcomes: Sequence[Any]) -> Answer:
        """The answer of a request's greedy outcome and, if there is one, of its sampled outcome."""
        try:
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
                if any(one.finish_reason == "error" for one in outcome.outputs):
                    raise RuntimeError(
                        "vLLM's core failed on the request; its log says why (engine.quiet=false)"
                    )
            answer = self._answer(request, outcomes[0])
        except Exception as error:
            return failed_answer(error)
        samples = tuple((self._text(one), one.finish_reason) for more in outcomes[1:] for one in more.outputs)
        return replace(answer, samples=samples)

    def _step(self) -> bool:
        """Add what is waiting and advance the batch by a token; False if there is no batch.

        vLLM counts a step's blocks as cached and its tokens as computed before the model runs, and takes nothing back
        when that fails: the prompts would be answered from memory that was never written.
        """
        while self._waiting:
            key, prompt, asked = self._waiting.popleft()
            try:
                self._llm.llm_engine.add_request(key, prompt, asked)
            except Exception as error:
                self._llm.llm_engine.abort_request([key])  # it may be known in part
                with self._rendering:
                    self._refuse(key, error)
        if not self._llm.llm_engine.has_unfinished_requests():
            return False
        try:
            outputs = self._llm.llm_engine.step()
        except Exception as error:
            self._failed = EngineFailed(
                f"vLLM failed at work on a batch, {type(error).__name__}: {error}. Finished shards are kept "
                "and the same command goes on; out of memory, lower engine.gpu_memory"
            )
            raise self._failed from error
        for output in outputs:
            if output.finished:
                self._outcomes[output.request_id] = output
        return True

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
        check_image_tokens(seen, request)
        completion = output.outputs[0]
        tokens = []
        for token_id, position in zip(completion.token_ids, completion.logprobs or (), strict=False):
            alternatives = tuple((self._piece(other), item.logprob) for other, item in position.items())
            tokens.append(
                Token(
                    text=self._piece(token_id), logprob=position[token_id].logprob, alternatives=alternatives
                )
            )
        return Answer(
            text=self._text(completion),
            tokens=tuple(tokens),
            num_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
        )

    def _text(self, completion: Any) -> str:
        """The answer without special tokens and without the token that ended it, which need not be a special one."""
        ended = completion.finish_reason == "stop"
        return self._tokenizer.decode(
            list(completion.token_ids)[: -1 if ended else None], skip_special_tokens=True
        )

    def _piece(self, token_id: int) -> str:
        """What a token spells by itself."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self._tokenizer.decode([token_id])
        return self._pieces[token_id]

    def cache_hits(self) -> dict[str, float]:
        """Shares of prompt tokens found in the prefix cache (`prefix`) and of images found prepared (`images`)."""
        counts = {metric.name: getattr(metric, "value", 0) for metric in self._llm.get_metrics()}
        names = {"prefix": "vllm:prefix_cache", "images": "vllm:mm_cache"}
        return {
            cache: counts[f"{name}_hits"] / queries
            for cache, name in names.items()
            if (queries := counts.get(f"{name}_queries", 0))
        }

    def close(self) -> None:
        """Stop the engine's core and free the model."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()
