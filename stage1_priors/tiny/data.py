"""Scenes with questions and box answers for the embedded model, drawn as they are needed.

Training scenes come from `rng("mllm", seed, index)`, held-out ones from `rng("mllm-heldout", seed, index)`: other keys
than RefShapes uses, so no scene is shared with it. Only boxes, words and attributes are read from a scene, never its
masks. Pixels take the road they take when served: JPEG file, bicubic resize to 112 x 112, CLIP normalisation.

Frames: "px" in this package means pixels of the 112 x 112 image, x in [0, 112].
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from shared.seeding import rng
from shared.synth.expressions import FLAVOURS, describe
from shared.synth.refshapes import JPEG_QUALITY
from shared.synth.scenes import COLOURS, PATTERNS, SCENE_SIZE_PX, SIZES, Scene, draw_scene
from shared.synth.shapes import SHAPES
from stage1_priors.tiny.model import MERGE, NUM_IMAGE_TOKENS, Rows
from stage1_priors.tiny.tokenizer import (
    ANSWER_LENGTH,
    END,
    IMAGE_PAD,
    IMAGE_SIZE_PX,
    PAD,
    VISION_END,
    answer_text,
    prompt_text,
)

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics, Qwen2.5-VL's preprocessing."""

ATTRIBUTES: tuple[tuple[str, ...], ...] = (SHAPES, tuple(COLOURS), PATTERNS, tuple(SIZES))
"""Values of the attributes the training-only heads name: shape, colour, pattern, size."""

MAX_OBJECTS = 8
_DRAWS_PER_QUESTION = 6


@dataclass(frozen=True, kw_only=True)
class Question:
    """One expression about a scene."""

    expression: str
    """Lower-case words."""
    kind: str
    """Kind of expression, one of `shared.synth.expressions.KINDS`."""
    target: int
    """Index of the object meant."""


@dataclass(frozen=True, kw_only=True)
class AskedScene:
    """A drawn scene as the model sees it, with questions about it."""

    image: Image.Image
    """RGB, 112 x 112."""
    boxes_K4: np.ndarray
    """float32 [K, 4], px."""
    attributes_K4: np.ndarray
    """int64 [K, 4], indices into `ATTRIBUTES`."""
    questions: tuple[Question, ...]
    """At least one."""


def served_image(image_HW3: np.ndarray) -> Image.Image:
    """A scene as it reaches the model: through a JPEG file and a bicubic resize to 112 x 112."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    size = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    return Image.open(buffer).convert("RGB").resize(size, Image.Resampling.BICUBIC)


def ask(stream: str, seed: int, index: int, num_questions: int) -> AskedScene:
    """Draw scene `index` of a stream and ask about it; flavours are mixed evenly.

    Args:
        stream: "mllm" for training, "mllm-heldout" for the held-out score.
        seed: Seed of the stream.
        index: Which scene; a scene nothing can be said about is drawn again.
        num_questions: Questions wanted; at least one is returned.
    """
    draw = rng(stream, seed, index)
    while True:
        scene = draw_scene(draw)
        questions = _questions(scene, draw, index, num_questions)
        if questions:
            break
    values = [(item.shape, item.colour, item.pattern, item.size) for item in scene.objects]
    return AskedScene(
        image=served_image(scene.image_HW3),
        boxes_K4=scene.boxes_xyxy_px * np.float32(IMAGE_SIZE_PX / SCENE_SIZE_PX),
        attributes_K4=np.array(
            [[names.index(v) for names, v in zip(ATTRIBUTES, o, strict=True)] for o in values]
        ),
        questions=tuple(questions),
    )


def _questions(scene: Scene, draw: np.random.Generator, index: int, wanted: int) -> list[Question]:
    found: list[Question] = []
    for attempt in range(_DRAWS_PER_QUESTION * wanted):
        if len(found) == wanted:
            break
        target = int(draw.integers(len(scene.objects)))
        flavour = FLAVOURS[(index + attempt) % len(FLAVOURS)]
        for said in describe(scene, target, flavour, draw):
            if all(said.text != question.expression for question in found):
                found.append(Question(expression=said.text, kind=said.kind, target=target))
    return found


def answer_box_px(box_xyxy_px: np.ndarray) -> tuple[int, int, int, int]:
    """A box rounded to the integers an answer can hold, each in [0, 112]."""
    x1, y1, x2, y2 = (int(value) for value in np.clip(np.floor(box_xyxy_px + 0.5), 0, IMAGE_SIZE_PX))
    return x1, y1, x2, y2


def normalise(images: list[Image.Image]) -> torch.Tensor:
    """Pixels as Qwen2.5-VL's image processor gives them, before it cuts patches: float32 [B, 3, 112, 112]."""
    pixel_BHW3 = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
    return ((pixel_BHW3 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B scenes with Q questions in all.

    Question axes: Q questions, A = 12 answer tokens, K = `MAX_OBJECTS`.
    """

    pixel_B3HW: torch.Tensor
    """float32, normalised."""
    rows: Rows
    """Tokens of every scene's questions, answers included."""
    answer_Q2: torch.Tensor
    """int64: row of a question, and where in the row its answer starts."""
    answer_QA: torch.Tensor
    """int64, answer tokens."""
    box_Q4: torch.Tensor
    """float32, box of the object meant, px."""
    boxes_BK4: torch.Tensor
    """float32, boxes of all objects, px; zero where there is none."""
    attributes_BK4: torch.Tensor
    """int64, indices into `ATTRIBUTES`."""
    num_objects_B: torch.Tensor
    """int64."""


def collate(scenes: list[AskedScene], tokenizer: PreTrainedTokenizerFast) -> Batch:
    """Lay out scenes for training: each row is the shared prefix, then its questions with their answers."""
    vision_end = tokenizer.convert_tokens_to_ids(VISION_END)
    rows, segments, positions, where, answers, boxes = [], [], [], [], [], []
    for index, scene in enumerate(scenes):
        row: list[int] = []
        segment: list[int] = []
        place: list[list[int]] = []
        for number, question in enumerate(scene.questions, start=1):
            box = scene.boxes_K4[question.target]
            label = SHAPES[scene.attributes_K4[question.target][0]]
            prompt = tokenizer.encode(
                prompt_text(question.expression, NUM_IMAGE_TOKENS), add_special_tokens=False
            )
            answer = tokenizer.encode(answer_text(answer_box_px(box), label) + END, add_special_tokens=False)
            assert len(answer) == ANSWER_LENGTH, (label, answer)
            split = prompt.index(vision_end) + 1
            if not row:
                row, segment = prompt[:split], [0] * split
                place = _prefix_positions(row, tokenizer.convert_tokens_to_ids(IMAGE_PAD))
                following = place[-1][0] + 1
            own = prompt[split:] + answer
            where.append((index, len(row) + len(prompt) - split))
            row, segment = row + own, segment + [number] * len(own)
            place += [[following + step] * 3 for step in range(len(own))]
            answers.append(answer)
            boxes.append(box)
        rows.append(row)
        segments.append(segment)
        positions.append(place)
    counts = torch.tensor([len(scene.boxes_K4) for scene in scenes])
    padded = torch.zeros(len(scenes), MAX_OBJECTS, 4)
    attributes = torch.zeros(len(scenes), MAX_OBJECTS, 4, dtype=torch.int64)
    for index, scene in enumerate(scenes):
        padded[index, : counts[index]] = torch.from_numpy(scene.boxes_K4)
        attributes[index, : counts[index]] = torch.from_numpy(scene.attributes_K4)
    length = max(map(len, rows))
    pad = tokenizer.convert_tokens_to_ids(PAD)
    return Batch(
        pixel_B3HW=normalise([scene.image for scene in scenes]),
        rows=Rows(
            token_BL=torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
            segment_BL=torch.tensor([segment + [-1] * (length - len(segment)) for segment in segments]),
            position_3BL=torch.tensor([p + [[0] * 3] * (length - len(p)) for p in positions]).permute(
                2, 0, 1
            ),
        ),
        answer_Q2=torch.tensor(where),
        answer_QA=torch.tensor(answers),
        box_Q4=torch.from_numpy(np.stack(boxes)),
        boxes_BK4=padded,
        attributes_BK4=attributes,
        num_objects_B=counts,
    )


def _prefix_positions(prefix: list[int], image_pad: int) -> list[list[int]]:
    """M-RoPE positions (time, height, width) of a prefix that ends just after one image of 4 x 4 tokens."""
    start = prefix.index(image_pad)
    side = IMAGE_SIZE_PX // (14 * MERGE)
    image = [[start, start + row, start + column] for row in range(side) for column in range(side)]
    after = len(prefix) - start - len(image)
    return [
        *([step] * 3 for step in range(start)),
        *image,
        *([start + side + step] * 3 for step in range(after)),
    ]
