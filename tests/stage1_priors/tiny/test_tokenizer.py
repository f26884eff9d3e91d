"""The tokenizer: every text round-trips, known pieces are one token, and the chat template equals the training text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.synth.expressions import VOCABULARY
from shared.synth.shapes import SHAPES
from stage1_priors.families import QWEN2_5_VL
from stage1_priors.tiny.tokenizer import (
    ANSWER_LENGTH,
    COORDINATE_OFFSETS,
    END,
    IMAGE_PAD,
    IMAGE_SIZE_PX,
    answer_text,
    build_tokenizer,
    prompt_text,
)

TOKENIZER = build_tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(encode(text), skip_special_tokens=False) == text


def test_every_word_and_number_is_one_token() -> None:
    for piece in [*(f" {word}" for word in VOCABULARY), *map(str, range(IMAGE_SIZE_PX + 1))]:
        assert len(encode(piece)) == 1, piece
    assert len({encode(str(n))[0] for n in range(IMAGE_SIZE_PX + 1)}) == IMAGE_SIZE_PX + 1


def test_unknown_words_fall_back_to_bytes() -> None:
    assert len(encode(" zebra")) == len(" zebra")
    assert len(encode(" ☃")) == 1 + len("☃".encode())


@pytest.mark.parametrize("label", SHAPES)
def test_answers_are_json_of_twelve_tokens(label: str) -> None:
    text = answer_text((0, 7, 42, 112), label)
    assert json.loads(text) == [{"bbox_2d": [0, 7, 42, 112], "label": label}]
    ids = encode(text + END)
    assert len(ids) == ANSWER_LENGTH
    assert [TOKENIZER.decode(ids[offset]) for offset in COORDINATE_OFFSETS] == ["0", "7", "42", "112"]


@pytest.mark.parametrize(
    "expression", ["left red star", "the ring to the left of the blue cross", "a man's Grey coat"]
)
def test_chat_template_gives_the_training_prompt(expression: str) -> None:
    chat = QWEN2_5_VL.messages(expression, None)
    served = TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    served = served.replace(IMAGE_PAD, IMAGE_PAD * 16)
    assert served == prompt_text(expression, 16)
    assert encode(served) == encode(prompt_text(expression, 16))


def test_chat_template_adds_the_system_line_when_it_is_missing() -> None:
    chat = QWEN2_5_VL.messages("ring", None)
    with_system, without = (
        TOKENIZER.apply_chat_template(part, tokenize=False, add_generation_prompt=True)
        for part in (chat, chat[1:])
    )
    assert with_system == without
