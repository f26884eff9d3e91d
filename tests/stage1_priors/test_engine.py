"""Isolation of failures with fakes; then vLLM itself, and vLLM against Transformers, in a process of their own."""

import json
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store.reader import PriorStore
from stage1_priors import engine as engine_module
from stage1_priors.config import EngineConfig, MllmConfig
from stage1_priors.engine import (
    NOT_INSTALLED,
    EngineFailed,
    Request,
    Submitted,
    collect_isolated,
    engine_versions,
    generate_isolated,
    require_packages,
    submit_isolated,
)
from stage1_priors.families import QWEN2_5_VL
from stage1_priors.quality import score_store
from stage1_priors.recipes import TINY_WEIGHTS
from stage1_priors.run import run_priors
from stage1_priors.transformers_engine import TransformersEngine
from stage1_priors.vllm_engine import Ticket, VllmEngine
from tests.stage1_priors.fake_engine import (
    FakeEngine,
    random_box_answer,
    seen_box_answer,
    write_model_folder,
)
from tests.stage1_priors.vllm_session import FAULTS, IMAGE_CACHE_GB, NUM_REQUESTS, NUM_SAMPLES

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = Image.new("RGB", (112, 112))


def requests(num):
    return [Request(image=IMAGE, expression=f"thing {n}", num_image_tokens=16) for n in range(num)]


class WholeCalls(FakeEngine):
    """Fails a call in which a request fails."""

    def _answer(self, request):
        return self.answer_of(request)


@pytest.mark.parametrize("kind", [FakeEngine, WholeCalls])
@pytest.mark.parametrize("bad", [set(), {0}, {6}, {2, 3}, {0, 3, 6}, set(range(7))])
def test_only_the_guilty_fail(bad, kind):
    def answer_of(request):
        if int(request.expression.split()[1]) in bad:
            raise ValueError(f"cannot do {request.expression}")
        return random_box_answer(request)

    answers = generate_isolated(kind(answer_of), requests(7))
    for n, (answer, request) in enumerate(zip(answers, requests(7), strict=True)):
        if n in bad:
            assert answer.error == f"ValueError: cannot do thing {n}"
        else:
            assert answer == random_box_answer(request)


@pytest.mark.parametrize("recovers", [False, True])
def test_what_was_answered_is_not_asked_again(recovers):
    """Of 512 requests 25 fail: each of them is asked twice, and no other."""
    seen = Counter()

    def answer_of(request):
        number = int(request.expression.split()[1])
        seen[number] += 1
        if number % 21 == 0 and (seen[number] == 1 or not recovers):
            raise ValueError(f"failure {seen[number]}")
        return random_box_answer(request)

    engine = FakeEngine(answer_of)
    answers = generate_isolated(engine, requests(512))
    assert engine.num_requests == 512 + 25 and max(seen.values()) == 2
    failed = [n for n, answer in enumerate(answers) if answer.error == "ValueError: failure 1"]
    assert failed == ([] if recovers else list(range(0, 512, 21)))


@pytest.mark.parametrize("bad", [{4}, {1, 2}])
def test_a_batch_refused_on_submission_is_taken_apart(bad):
    class Refusing(FakeEngine):
        def submit(self, requests):
            if any(int(request.expression.split()[1]) in bad for request in requests):
                raise ValueError("too long")
            return super().submit(requests)

    engine = Refusing()
    answers = collect_isolated(engine, submit_isolated(engine, requests(7)))
    assert {n for n, answer in enumerate(answers) if answer.error == "ValueError: too long"} == bad
    assert engine.num_requests == 7 - len(bad)


def test_no_requests_no_call():
    engine = FakeEngine()
    assert generate_isolated(engine, []) == [] and engine.num_requests == 0


def test_an_interrupt_is_not_swallowed():
    def answer_of(request):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_isolated(FakeEngine(answer_of), requests(2))


def test_versions_come_without_imports():
    code = (
        "import sys; from stage1_priors.engine import engine_versions; print(engine_versions('vllm'));"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "transformers" in done.stdout
    packages = {"transformers", "torch", "torchvision", "tokenizers", "pillow"}
    assert set(engine_versions("transformers")) == packages
    assert set(engine_versions("vllm")) == packages | {"vllm"}


def test_torchvision_is_asked_for_by_name(monkeypatch):
    """Transformers says nothing of it before it opens a processor."""
    version_of = engine_module._version
    monkeypatch.setattr(
        engine_module,
        "_version",
        lambda names: NOT_INSTALLED if "torchvision" in names else version_of(names),
    )
    said = r"engine\.kind=transformers needs torchvision, not installed in .*: pip install -e \."
    with pytest.raises(DataError, match=said):
        require_packages("transformers")


OTHER_WORDS = QWEN2_5_VL.asking("Where is {expression}?", "Be brief.")


def said(messages):
    """All that is text in chat messages."""
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]


def test_both_engines_ask_in_the_words_of_the_family():
    (request,) = requests(1)
    served = object.__new__(VllmEngine)
    served._family = OTHER_WORDS
    assert said(served._conversation(request)) == ["Be brief.", "Where is thing 0?"]

    class Processor:
        def apply_chat_template(self, messages, **options):
            raise ValueError(said(messages))

    reference = object.__new__(TransformersEngine)
    reference._family, reference._processor, reference._batch_size = OTHER_WORDS, Processor(), 1
    (answer,) = reference.collect([request])
    assert answer.error == f"ValueError: {['Be brief.', 'Where is thing 0?']}"


def test_a_run_and_its_canary_ask_in_the_words_of_the_configuration(config):
    words, engine = [], FakeEngine(seen_box_answer)

    def factory(folder, family, model, engine_config):
        words.append(said(family.messages("mug", None)))
        return engine

    asked = ["model.question=Where is the {expression} = what?", "canary.mode=warn", "splits=val"]
    run_priors(apply_overrides(config, asked), engine_factory=factory, quiet=True)
    assert words == [["You are a helpful assistant.", "Where is the mug = what?"]]


def test_an_output_that_vllms_core_gave_up_on_is_a_failure_and_no_empty_answer():
    engine = object.__new__(VllmEngine)
    engine._failed = None
    engine._num_samples = 0
    given_up = SimpleNamespace(outputs=[SimpleNamespace(finish_reason="error", token_ids=())])
    engine._outcomes = {"l2l-0": given_up}
    (answer,) = engine.collect(Ticket(requests=requests(1), greedy=("l2l-0",)))
    assert "vLLM's core failed on the request" in answer.error


@pytest.mark.parametrize("num_samples", [0, 2])
def test_vllm_keeps_what_it_answered_beside_a_failure(num_samples):
    """Requests 1 (refused) and 2 (whose samples were, if there are any) fail; nothing is asked to the core again."""

    def output():
        one = SimpleNamespace(finish_reason="stop", token_ids=[7, 0], logprobs=None)
        return SimpleNamespace(outputs=[one] * max(1, num_samples), prompt_token_ids=[5] * 16)

    engine = object.__new__(VllmEngine)
    engine._failed, engine._num_samples, engine._image_token_id = None, num_samples, 5
    engine._tokenizer = SimpleNamespace(decode=lambda ids, **_: f"answer {ids}")
    greedy, sampled = ("g0", "g1", "g2", "g3"), ("s0", "s1", "s2", "s3")
    engine._outcomes = {key: output() for key in greedy} | {"g1": ValueError("too long")}
    if num_samples:
        engine._outcomes |= {key: output() for key in sampled} | {"s2": ValueError("no room")}
    ticket = Ticket(requests=requests(4), greedy=greedy, sampled=sampled if num_samples else ())
    answers = engine.collect(ticket)
    errors = [None, "ValueError: too long", "ValueError: no room" if num_samples else None, None]
    assert [answer.error for answer in answers] == errors and not engine._outcomes
    assert answers[3].text == "answer [7]" and answers[3].samples == (("answer [7]", "stop"),) * num_samples


def test_a_model_is_spread_over_the_gpus_of_its_worker(monkeypatch, tmp_path):
    """Seen by a stand-in for vLLM: there is no machine with several GPUs to ask."""
    asked = {}

    class Stub:
        FINAL_ONLY = None

        def __init__(self, **options):
            asked.update(options)

        def get_tokenizer(self):
            return None

    parts = {
        "vllm": {"LLM": Stub, "SamplingParams": dict},
        "vllm.sampling_params": {"RequestOutputKind": Stub},
        "vllm.platforms": {"current_platform": None},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": Stub},
    }
    for name, held in parts.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**held))
    for name in VllmEngine._environment(EngineConfig()):
        monkeypatch.setenv(name, "0")
    folder = write_model_folder(tmp_path / "model")
    VllmEngine(folder, QWEN2_5_VL, MllmConfig(path=str(folder)), EngineConfig(gpus=4))
    assert asked["tensor_parallel_size"] == 4


def test_a_failure_at_work_ends_the_engine():
    """vLLM out of memory in a step: what it has in its caches then, it has not computed."""

    class Core:
        asked: ClassVar[list[str]] = []

        def add_request(self, key, *_rest):
            self.asked.append(key)

        def has_unfinished_requests(self):
            return True

        def step(self):
            raise MemoryError("CUDA out of memory")

    engine = object.__new__(VllmEngine)
    engine._llm, engine._failed, engine._outcomes = SimpleNamespace(llm_engine=Core()), None, {}
    engine._waiting = deque([("l2l-0", None, None), ("l2l-1", None, None)])
    two = Submitted(requests=requests(2), ticket=Ticket(requests=requests(2), greedy=("l2l-0", "l2l-1")))
    for _ in range(2):
        with pytest.raises(EngineFailed, match="MemoryError: CUDA out of memory. Finished shards are kept"):
            collect_isolated(engine, two)
    with pytest.raises(EngineFailed):
        engine.submit(requests(1))
    assert Core.asked == ["l2l-0", "l2l-1"]


def test_a_step_that_returns_nothing_yet_is_waited_out():
    """On a GPU vLLM schedules the next step while one runs, so that the first of them has no outputs."""

    class Core:
        def __init__(self):
            self.asked, self.steps = [], 0

        def add_request(self, key, *_rest):
            self.asked.append(key)

        def has_unfinished_requests(self):
            return self.steps < 3

        def step(self):
            self.steps += 1
            done = [SimpleNamespace(request_id=key, finished=self.steps == 3) for key in self.asked]
            return [] if self.steps == 1 else done

    engine, core = object.__new__(VllmEngine), Core()
    engine._llm, engine._failed, engine._outcomes = SimpleNamespace(llm_engine=core), None, {}
    engine._num_samples, engine._waiting = 0, deque([("l2l-0", None, None), ("l2l-1", None, None)])
    engine._answer_or_failure = lambda request, outcomes: outcomes[0].request_id
    assert engine.collect(Ticket(requests=requests(2), greedy=("l2l-0", "l2l-1"))) == ["l2l-0", "l2l-1"]
    assert core.steps == 3


def test_flashinfers_sampler_is_left_alone(monkeypatch):
    """It would be compiled at the start, with nvcc, which machines that only run things do not have."""
    assert VllmEngine._environment(EngineConfig())["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    envs = pytest.importorskip("vllm.envs")
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    assert envs.VLLM_USE_FLASHINFER_SAMPLER is False  # vLLM knows the name


@pytest.fixture(scope="module")
def session(tmp_path_factory, refshapes_root):
    """Results of `vllm_session` with the embedded model, or with a random one where it is not there."""
    out = tmp_path_factory.mktemp("session")
    model = TINY_WEIGHTS
    if not (model / "model.safetensors").exists():
        model = out / "model"
        code = "import sys, pathlib; from tests.stage1_priors.tiny_model import save_random_model as save;"
        subprocess.run(
            [sys.executable, "-c", code + "save(pathlib.Path(sys.argv[1]))", str(model)],
            cwd=REPOSITORY,
            check=True,
        )
    command = [
        sys.executable,
        "-m",
        "tests.stage1_priors.vllm_session",
        str(model),
        str(refshapes_root),
        str(out),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / "result.json").read_text())


@pytest.fixture
def served(session):
    """vLLM's answers to the good requests of the mixed batch, whose last one is bad as well."""
    pairs = zip(session["asked"][:-1], session["vllm"][:-1], strict=True)
    return [answer for asked, answer in pairs if asked not in FAULTS.values()]


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_answers_every_request_with_log_probabilities(served):
    assert len(served) == NUM_REQUESTS
    for answer in served:
        assert answer["error"] is None and answer["num_tokens"] == len(answer["tokens"]) > 0
        assert answer["finish_reason"] in ("stop", "length")
        for token in answer["tokens"]:
            best = max(logprob for _, logprob in token["alternatives"])
            assert len(token["alternatives"]) >= 10 and token["logprob"] == pytest.approx(best, abs=1e-4)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_reports_an_image_it_would_resize_again(session):
    assert "the engine resized it again" in session["vllm"][-1]["error"]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("too long with its image", "leaves no room for an answer: model.max_model_len is 256"),
        ("too long", "maximum context length is 256 tokens"),
        ("the marker of an image", "image"),
    ],
)
def test_vllm_an_impossible_question_fails_alone(session, served, fault, message):
    """It is the first one about its image: the others of the image are answered all the same."""
    at = session["asked"].index(FAULTS[fault])
    assert message in session["vllm"][at]["error"] and not session["vllm"][at]["text"]
    assert all(answer["error"] is None for answer in served)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_recovers_when_its_core_has_lost_the_images(session, served):
    again = session["vllm, its core without images"]
    assert [(answer["error"], answer["text"]) for answer in again] == [(None, one["text"]) for one in served]
    assert not session["unfinished"]


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_caches_change_nothing(session, served):
    hits, none = (session[f"cache hits of vllm, caching {caching}"] for caching in (True, False))
    assert hits["prefix"] > 0.2 and hits["images"] > 0.2 and not none.get("prefix") and not none.get("images")
    bare = session["vllm, no caches"]
    assert [answer["text"] for answer in bare] == [answer["text"] for answer in served]
    for one, other in zip(bare, served, strict=True):
        np.testing.assert_allclose(
            [token["logprob"] for token in one["tokens"]],
            [token["logprob"] for token in other["tokens"]],
            atol=1e-3,
        )


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_keeps_no_more_prepared_images_than_it_is_allowed(session):
    for num_bytes, num_images in session["image caches"]:
        assert 0 < num_bytes <= IMAGE_CACHE_GB * 2**30
        assert 0 < num_images < session["images"]


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_equals_transformers_in_float32(session, served):
    """Greedy texts are equal; log-probabilities agree to float32 rounding through a few layers (1e-3)."""
    reference = session["transformers"]
    assert [answer["text"] for answer in reference] == [answer["text"] for answer in served]
    assert [answer["num_tokens"] for answer in reference] == [answer["num_tokens"] for answer in served]
    for one, other in zip(reference, served, strict=True):
        for left, right in zip(one["tokens"], other["tokens"], strict=True):
            assert left["logprob"] == pytest.approx(right["logprob"], abs=1e-3)
            theirs = dict(right["alternatives"])
            shared = [(value, theirs[text]) for text, value in left["alternatives"] if text in theirs]
            assert len(shared) >= 8
            np.testing.assert_allclose(*np.transpose(shared), atol=1e-3)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_writes_a_store(session):
    """Texts and boxes equal those of the reference engine; maps to one level."""
    store, reference = PriorStore(session["store"]), PriorStore(session["store of transformers"])
    store.require_complete()
    assert store.fingerprint != reference.fingerprint
    rows = range(store.num_rows)
    assert store.sample_ids == reference.sample_ids
    assert store.texts("raw_text", rows) == reference.texts("raw_text", rows)
    for name in ("status", "num_tokens", "processed_hw", "box_xyxy_norm"):
        np.testing.assert_array_equal(store.column(name), reference.column(name), err_msg=name)
    np.testing.assert_allclose(store.column("confidence"), reference.column("confidence"), atol=1e-3)
    difference = store.column("proposal").astype(int) - reference.column("proposal")
    assert np.abs(difference).max() <= 2
    assert store.attrs["canary"]["mode"] == "warn"


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", ["store", "store of transformers"])
def test_a_store_of_real_answers_keeps_sampled_boxes_and_scores_by_them(session, name):
    store = PriorStore(session[name])
    boxes, agreement = store.column("sample_box_xyxy_norm"), store.column("sample_iou")
    assert boxes.shape == (store.num_rows, NUM_SAMPLES, 4)
    assert ((agreement >= 0) & (agreement <= 1)).all() and len(np.unique(agreement)) > store.num_rows // 4
    apart = [not np.array_equal(one[0], one[1], equal_nan=True) for one in boxes]
    assert sum(apart) > store.num_rows // 4
    scores = score_store(session[name])
    assert set(scores) == {"val", "testA"} and all("sample_auroc" in split for split in scores.values())


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(
    not (TINY_WEIGHTS / "model.safetensors").exists(), reason="the embedded weights are not there"
)
def test_the_embedded_model_grounds(session):
    """The embedded prior passes its canary, parses, and beats chance by far on scenes it was not trained on."""
    store = PriorStore(session["store"])
    assert store.attrs["canary"]["passed"]
    scores = score_store(session["store"])["val"]
    assert scores["status"]["ok"] > 0.95 and scores["box_acc@0.5"] > 0.5
