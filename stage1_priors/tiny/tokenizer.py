"""Tokenizer and chat template of the embedded model: Qwen2.5-VL's special tokens over a tiny vocabulary.

A byte-level BPE without merges whose vocabulary holds whole pieces: a piece that the pattern cuts out and the
vocabulary knows is one token, anything else falls back to its bytes. So every text round-trips, no token is unknown,
and the texts that stage 1 and the model exchange are short:

    prompt  ... <|vision_start|> 16 x <|image_pad|> <|vision_end|> [Output the bounding box of the] [ red] [ star] ...
    answer  [[{"bbox_2d": [] 12 [, ] 34 [, ] 56 [, ] 78 [], "label": "] [star] ["}]] <|im_end|>     12 tokens
"""

import re
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

from shared.synth.expressions import VOCABULARY
from shared.synth.shapes import SHAPES
from stage1_priors.families.qwen2_5_vl import QUESTION, SYSTEM

IMAGE_SIZE_PX = 112
"""Side of the image that the model sees; the largest coordinate it can say."""

END, PAD = "<|im_end|>", "<|endoftext|>"
IMAGE_PAD, VISION_END = "<|image_pad|>", "<|vision_end|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
)

QUESTION_HEAD, QUESTION_TAIL = QUESTION.split(" {expression}")
ANSWER_HEAD, ANSWER_COMMA, ANSWER_LABEL, ANSWER_TAIL = '[{"bbox_2d": [', ", ", '], "label": "', '"}]'
ANSWER_LENGTH = 12
"""Tokens of an answer, `<|im_end|>` included."""
COORDINATE_OFFSETS = (1, 3, 5, 7)
"""Which of them are x1, y1, x2, y2."""

MAX_LENGTH = 1024
"""Longest sequence the model is declared for; a caption of unknown words costs a token per byte."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's template, without videos and picture numbering."""

_PIECES = (SYSTEM, QUESTION_HEAD, QUESTION_TAIL, ANSWER_HEAD, ANSWER_LABEL, ANSWER_TAIL, ANSWER_COMMA)


def _pattern() -> str:
    """What is cut out as one piece, in order of preference."""
    fixed = [re.escape(piece) for piece in _PIECES]
    return "|".join([*fixed, r"[0-9]+", r" ?[A-Za-z]+", r"\n", r" ?[^\sA-Za-z0-9]+", r"\s+"])


def _vocabulary() -> dict[str, int]:
    """Byte-level spelling of every token that is not special -> id; bytes first, numbers 0..112 in order."""
    words = [*(f" {word}" for word in VOCABULARY), *SHAPES, "system", "user", "assistant"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    numbers = [str(number) for number in range(IMAGE_SIZE_PX + 1)]
    spelled = [byte_level.pre_tokenize_str(piece)[0][0] for piece in (*numbers, *_PIECES, *words)]
    tokens = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *spelled])
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, a pure function of the drawn scenes' vocabulary."""
    raw = RawTokenizer(models.BPE(vocab=_vocabulary(), merges=[], ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_pattern()), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE_PAD, "video_token": "<|video_pad|>"},
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def answer_text(box_xyxy_px: Sequence[int], label: str) -> str:
    """The answer to train on: valid JSON in Qwen2.5-VL's format.

    Args:
        box_xyxy_px: Four integers in [0, 112], pixels of the resized image.
        label: A shape's name.
    """
    numbers = ANSWER_COMMA.join(str(int(value)) for value in box_xyxy_px)
    return f"{ANSWER_HEAD}{numbers}{ANSWER_LABEL}{label}{ANSWER_TAIL}"


def prompt_text(expression: str, num_image_tokens: int) -> str:
    """The text of a prompt after the chat template and the expansion of the image token."""
    return (
        f"<|im_start|>system\n{SYSTEM}{END}\n<|im_start|>user\n"
        f"<|vision_start|>{IMAGE_PAD * num_image_tokens}{VISION_END}"
        f"{QUESTION.format(expression=expression)}{END}\n<|im_start|>assistant\n"
    )
