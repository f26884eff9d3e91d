"""The Transformers engine on a random model: what it keeps of its logits, and failures that cost their own request."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from shared.seeding import rng
from stage1_priors.answers import make_request
from stage1_priors.config import EngineConfig, MllmConfig
from stage1_priors.engine import EngineFailed, generate_isolated
from stage1_priors.families import Family, family_of, size_rules_of
from stage1_priors.transformers_engine import TokenWatch, TransformersEngine
from tests.stage1_priors.tiny_model import save_random_model

MAX_TOKENS, TOP = 7, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model") / "random")


def engine_of(folder, **fields):
    model = MllmConfig(**{"path": str(folder), "dtype": "float32", "max_tokens": MAX_TOKENS} | fields)
    return TransformersEngine(
        folder, family_of(folder), model, EngineConfig(kind="transformers", batch_size=4)
    )


def requests_of(folder, num):
    family = family_of(folder)
    rules = size_rules_of(family, folder)
    pictures = [
        Image.fromarray(rng("picture", n).integers(0, 256, (112, 112, 3), dtype="uint8")) for n in range(num)
    ]
    return [
        make_request(picture, f"{'red ' * n}circle", family, rules, str(n))
        for n, picture in enumerate(pictures)
    ]


def watch_generate(engine, monkeypatch, **more):
    """What every call of `generate` is asked for and gives."""
    calls, generate = [], engine._model.generate

    def watched(**options):
        calls.append((options, generate(**options, **more)))
        return calls[-1][1]["sequences"] if more else calls[-1][1]

    monkeypatch.setattr(engine._model, "generate", watched)
    return calls


def test_tokens_are_those_of_the_full_logits(folder, monkeypatch):
    """Of every step the chosen token and the best, as all logits of all steps give them."""
    engine = engine_of(folder, top_logprobs=TOP)
    calls = watch_generate(engine, monkeypatch, output_logits=True, return_dict_in_generate=True)
    answers = engine.collect(requests_of(folder, 3))
    ((options, output),) = calls
    spelled = engine._processor.tokenizer.decode
    logprob_BTV = torch.stack(output["logits"], 1).float().log_softmax(-1)
    new_BT = output["sequences"][:, options["input_ids"].shape[1] :]
    assert len({answer.text for answer in answers}) > 1
    for answer, ids_T, logprob_TV in zip(answers, new_BT, logprob_BTV, strict=True):
        assert answer.error is None and 0 < answer.num_tokens == len(answer.tokens) <= MAX_TOKENS
        for token, chosen, logprob_V in zip(answer.tokens, ids_T, logprob_TV, strict=False):
            best = logprob_V.topk(TOP)
            assert (token.text, token.logprob) == (spelled([chosen]), logprob_V[chosen].item())
            want = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            assert token.alternatives == tuple((spelled([index]), value) for index, value in want)


def test_no_logits_are_kept_where_nobody_asks_for_them(folder, monkeypatch):
    engine = engine_of(folder, top_logprobs=0, num_samples=2)
    calls = watch_generate(engine, monkeypatch)
    answers = engine.collect(requests_of(folder, 2))
    assert [answer.tokens for answer in answers] == [(), ()] and all(len(one.samples) == 2 for one in answers)
    assert len(calls) == 3 and all(isinstance(output, torch.Tensor) for _, output in calls)
    assert not any(isinstance(one, TokenWatch) for options, _ in calls for one in options["logits_processor"])
    with_top = engine_of(folder, top_logprobs=TOP, num_samples=2).collect(requests_of(folder, 2))
    assert [(one.text, one.samples) for one in with_top] == [(one.text, one.samples) for one in answers]


def test_a_watch_keeps_the_best_alone():
    """100 steps of a vocabulary of 50,000: no tensor of that width outlives its step."""
    watch, held = TokenWatch(10), []
    for step in range(100):
        logit_BV = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(step))
        assert watch(None, logit_BV) is logit_BV
        held.append(sum(part.untyped_storage().nbytes() for part in watch._steps[-1]))
    assert max(held) < 1000 and [len(row) for row in watch.tokens()] == [100, 100]
    logprob, best = watch.tokens()[1][99]
    assert logprob == best[0][1] and len(best) == 10


def test_a_request_that_fails_costs_no_other_one(folder, monkeypatch):
    """One image would be resized again; another expression breaks its batch of four, which is taken apart."""
    engine = engine_of(folder)
    asked = requests_of(folder, 9)
    alone = engine.collect(asked)
    bad = [*asked]
    bad[1] = replace(asked[1], num_image_tokens=3)
    bad[6] = replace(asked[6], expression="cannot be asked")
    known_messages = Family.messages

    def messages(family, expression, image):
        if expression == "cannot be asked":
            raise ValueError("no such words")
        return known_messages(family, expression, image)

    monkeypatch.setattr(Family, "messages", messages)
    calls = watch_generate(engine, monkeypatch)
    answers = generate_isolated(engine, bad)
    assert (
        "the engine resized it again" in answers[1].error and answers[6].error == "ValueError: no such words"
    )
    good = [n for n in range(9) if n not in (1, 6)]
    assert [answers[n].text for n in good] == [alone[n].text for n in good]
    # Four; the fifth and sixth, the eighth; the ninth. Then the second once more.
    assert [len(options["input_ids"]) for options, _ in calls] == [4, 2, 1, 1, 1]


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch before 2.8 has no such error")
def test_a_fault_of_the_gpu_is_none_of_a_request(folder, monkeypatch):
    engine = engine_of(folder)

    def generate(**options):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine._model, "generate", generate)
    with pytest.raises(EngineFailed, match="the GPU failed at work .*illegal memory access.* goes on"):
        generate_isolated(engine, requests_of(folder, 2))
