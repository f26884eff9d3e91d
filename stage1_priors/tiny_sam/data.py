"""Scenes, boxes and masks for the embedded mask proposer, drawn as they are needed.

Training scenes come from `rng("sam", seed, index)`, held-out ones from `rng("sam-heldout", seed, index)`: other keys
than RefShapes and the other embedded models use, so no scene is shared. Pixels take the road they take when served:
JPEG file, then the model's own processor.

Half of the boxes in training are tight, half are jittered as a multimodal model's would be: each edge moves by a normal
deviate in proportion to the box's side, plus one pixel of rounding.

Before scenes come boxes alone (`draw_boxes_alone`): where a box is must be learnt first, and without an image to encode
that takes a tenth of the time.

Legend: B scenes, K boxes of a scene, S side of the image (128 px), M side of the mask logits.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import Sam2Processor

from shared.seeding import rng
from shared.synth.refshapes import JPEG_QUALITY
from shared.synth.scenes import draw_scene
from stage1_priors.answers import box_iou
from stage1_priors.tiny_sam.model import IMAGE_SIZE_PX, MASK_SIZE

JITTER = 0.12
"""Largest standard deviation of an edge, share of the box's side; each box draws its own, from 0 up to this."""
MIN_JITTERED_IOU = 0.4
"""A jittered box that overlaps the tight one by less is drawn again: the object meant would be open to question."""


@dataclass(frozen=True, kw_only=True)
class BoxedScene:
    """A drawn scene with boxes to be turned into masks."""

    image: Image.Image
    """RGB, 128 x 128, through a JPEG file."""
    boxes_K4: np.ndarray
    """float32 [K, 4], prompts, px."""
    tight_K4: np.ndarray
    """float32 [K, 4], tight boxes of the same objects, px."""
    masks_KSS: np.ndarray
    """bool [K, 128, 128], visible pixels of the objects."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes as tensors."""

    pixel_B3SS: torch.Tensor
    """float32, normalised by the model's processor."""
    box_BK4: torch.Tensor
    """float32, px of the model's image."""
    target_BKMM: torch.Tensor
    """float32 in [0, 1]: share of each cell that the object covers."""


def jitter_box(box_4: np.ndarray, draw: np.random.Generator, size_px: int = IMAGE_SIZE_PX) -> np.ndarray:
    """An imperfect version of a tight box: float32 [4], inside the image, corners in order."""
    side_4 = np.tile(box_4[2:] - box_4[:2], 2)
    while True:
        spread = draw.uniform(0, JITTER)
        moved_4 = box_4 + draw.normal(size=4) * spread * side_4 + draw.uniform(-1, 1, 4)
        moved_4 = np.clip(moved_4, 0, size_px).astype(np.float32)
        if box_iou(moved_4[None], box_4[None])[0] >= MIN_JITTERED_IOU:
            return moved_4


def draw_boxed(stream: str, seed: int, index: int, num_boxes: int, jittered: float = 0.5) -> BoxedScene:
    """Draw scene `index` of a stream and choose objects.

    Args:
        stream: "sam" for training, "sam-heldout" for the held-out score.
        seed: Seed of the stream.
        index: Which scene.
        num_boxes: K; objects are taken in a random order, and again if there are fewer.
        jittered: Share of the boxes that are not tight.
    """
    draw = rng(stream, seed, index)
    scene = draw_scene(draw)
    buffer = io.BytesIO()
    Image.fromarray(scene.image_HW3).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    chosen_K = np.resize(draw.permutation(len(scene.objects)), num_boxes)
    tight_K4 = scene.boxes_xyxy_px[chosen_K]
    boxes = [jitter_box(box_4, draw) if draw.random() < jittered else box_4 for box_4 in tight_K4]
    return BoxedScene(
        image=Image.open(buffer).convert("RGB"),
        boxes_K4=np.stack(boxes),
        tight_K4=tight_K4,
        masks_KSS=scene.masks_KHW[chosen_K],
    )


def draw_boxes_alone(seed: int, index: int, num_boxes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes that are their own masks, for a model that sees no image.

    Args:
        seed: Seed of the stream `rng("sam-boxes", seed, index)`.
        index: Which batch.
        num_boxes: K.

    Returns:
        Boxes float32 [1, K, 4], px, sides of 14 to 50; and masks float32 [1, K, M, M], 1 where a cell's centre is in.
    """
    draw = rng("sam-boxes", seed, index)
    side_K2 = draw.uniform(14, 50, (num_boxes, 2))
    centre_K2 = draw.uniform(side_K2 / 2, IMAGE_SIZE_PX - side_K2 / 2)
    box_K4 = np.concatenate([centre_K2 - side_K2 / 2, centre_K2 + side_K2 / 2], 1).astype(np.float32)
    mask_KMM = filled_boxes(box_K4, MASK_SIZE)
    return torch.from_numpy(box_K4)[None], torch.from_numpy(mask_KMM)[None].float()


def filled_boxes(box_N4: np.ndarray, side: int) -> np.ndarray:
    """Boxes (px) as masks bool [N, side, side]: cells of the image whose centre lies inside."""
    centre = (np.arange(side) + 0.5) * IMAGE_SIZE_PX / side
    x1, y1, x2, y2 = (box_N4[:, k, None] for k in range(4))
    inside_x, inside_y = (x1 <= centre) & (centre <= x2), (y1 <= centre) & (centre <= y2)
    return inside_y[:, :, None] & inside_x[:, None, :]


def collate(scenes: Sequence[BoxedScene], processor: Sam2Processor) -> Batch:
    """Tensors of some scenes with equally many boxes."""
    inputs = processor(images=[scene.image for scene in scenes], return_tensors="pt")
    masks_BKSS = torch.from_numpy(np.stack([scene.masks_KSS for scene in scenes])).float()
    step = IMAGE_SIZE_PX // MASK_SIZE
    return Batch(
        pixel_B3SS=inputs["pixel_values"],
        box_BK4=torch.from_numpy(np.stack([scene.boxes_K4 for scene in scenes])),
        target_BKMM=torch.nn.functional.avg_pool2d(masks_BKSS, step),
    )
