"""Scenes and expressions to pretrain the embedded backbone on, drawn once and held in memory.

Axes: N scenes, K = `MAX_OBJECTS` object slots, S side of the model input, P pairs of a batch, R pairs of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shared.seeding import Key, rng
from shared.synth.expressions import describe
from shared.synth.scenes import COLOURS, PATTERNS, SIZES, draw_scene
from shared.synth.shapes import SHAPES
from stage2_train.transforms import mirror_words, resize_image

MAX_OBJECTS = 8

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "size": tuple(SIZES),
}
"""What is known of every object, in the order of `Pool.attributes_NK4`."""

WANTED: tuple[tuple[str, int], ...] = (("refshapes", 2), ("refshapes+", 1), ("refshapesg", 2))
"""Flavours and how many expressions of each are asked for per object."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Drawn scenes."""

    image_NSS3: np.ndarray
    """uint8 RGB."""
    object_NSS: np.ndarray
    """uint8: 0 background, k + 1 the visible pixels of object k."""
    attributes_NK4: np.ndarray
    """uint8 index of shape, colour, pattern and size; 0 in empty slots."""
    phrases: tuple[tuple[tuple[int, str, str], ...], ...]
    """For each scene its (object index, text, kind); at least one."""

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.phrases)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some images and R expressions of each, rows of one image adjacent."""

    image_BSS3: np.ndarray
    """uint8."""
    object_BSS: np.ndarray
    """uint8, as in the pool."""
    attributes_BK4: np.ndarray
    """uint8, as in the pool."""
    texts: list[str]
    """P = B R texts."""
    wanted_P: np.ndarray
    """int64, index k of the object each text means."""
    mask_PSS: np.ndarray
    """bool, the object each text means."""
    kinds: list[str]
    """Kind of each expression."""


def draw_pool(indices: Sequence[int], size_px: int, *key: Key) -> Pool:
    """Draw the scenes `("backbone", *key, index)`.

    Args:
        indices: Scene numbers; one whose objects cannot be described is left out.
        size_px: Side S of the model input.
        key: What the scenes are for.
    """
    images, objects, attributes, phrases = [], [], [], []
    for index in indices:
        generator = rng("backbone", *key, index)
        scene = draw_scene(generator)
        said = tuple(
            (k, expression.text, expression.kind)
            for k in range(len(scene.objects))
            for flavour, num in WANTED
            for expression in describe(scene, k, flavour, generator, num)
        )
        if not said:
            continue
        label_HW = np.zeros(scene.masks_KHW.shape[1:], dtype=np.uint8)
        slots_K4 = np.zeros((MAX_OBJECTS, len(ATTRIBUTES)), dtype=np.uint8)
        for k, (mask_HW, item) in enumerate(zip(scene.masks_KHW, scene.objects, strict=True)):
            label_HW[mask_HW] = k + 1
            slots_K4[k] = [values.index(getattr(item, name)) for name, values in ATTRIBUTES.items()]
        images.append(resize_image(Image.fromarray(scene.image_HW3), size_px, size_px))
        objects.append(
            np.asarray(Image.fromarray(label_HW).resize((size_px, size_px), Image.Resampling.NEAREST))
        )
        attributes.append(slots_K4)
        phrases.append(said)
    return Pool(
        image_NSS3=np.stack(images),
        object_NSS=np.stack(objects),
        attributes_NK4=np.stack(attributes),
        phrases=tuple(phrases),
    )


def draw_batch(pool: Pool, num_images: int, num_phrases: int, generator: np.random.Generator) -> Batch:
    """Draw images without replacement, R expressions of each, and mirror half of the images.

    Args:
        pool: Where from.
        num_images: B.
        num_phrases: R; an image with fewer repeats some.
        generator: Source of every choice.
    """
    chosen_B = generator.choice(len(pool), size=num_images, replace=False)
    image_BSS3, object_BSS = pool.image_NSS3[chosen_B], pool.object_NSS[chosen_B]
    texts, wanted, kinds = [], [], []
    for row, scene in enumerate(chosen_B):
        mirrored = generator.random() < 0.5
        if mirrored:
            image_BSS3[row], object_BSS[row] = (
                image_BSS3[row, :, ::-1].copy(),
                object_BSS[row, :, ::-1].copy(),
            )
        said = pool.phrases[scene]
        picks = generator.permutation(len(said))[:num_phrases]
        picks = np.resize(picks, num_phrases)
        for pick in picks:
            index, text, kind = said[pick]
            texts.append(mirror_words(text) if mirrored else text)
            wanted.append(index + 1)
            kinds.append(kind)
    mask_PSS = np.repeat(object_BSS, num_phrases, axis=0) == np.array(wanted, dtype=np.uint8)[:, None, None]
    return Batch(
        image_BSS3=image_BSS3,
        object_BSS=object_BSS,
        attributes_BK4=pool.attributes_NK4[chosen_B],
        texts=texts,
        wanted_P=np.array(wanted, dtype=np.int64) - 1,
        mask_PSS=mask_PSS,
        kinds=kinds,
    )
