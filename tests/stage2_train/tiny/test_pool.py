"""Drawn pools and batches."""

import numpy as np

from shared.seeding import rng
from stage2_train.tiny.pool import ATTRIBUTES, draw_batch, draw_pool


def test_a_pool_is_a_function_of_its_key() -> None:
    first, second, other = (draw_pool(range(3), 48, key) for key in (0, 0, 1))
    assert np.array_equal(first.image_NSS3, second.image_NSS3) and first.phrases == second.phrases
    assert not np.array_equal(first.image_NSS3, other.image_NSS3)


def test_masks_are_the_object_meant_and_mirroring_moves_both() -> None:
    pool = draw_pool(range(4), 48, 0)
    batch = draw_batch(pool, 3, 4, rng("test"))
    assert batch.mask_PSS.shape == (12, 48, 48) and len(batch.texts) == len(batch.kinds) == 12
    assert batch.mask_PSS.any(axis=(1, 2)).all()
    shown_PSS = np.repeat(batch.object_BSS, 4, axis=0)
    assert np.array_equal(shown_PSS == 1 + batch.wanted_P[:, None, None], batch.mask_PSS)
    originals = [pool.image_NSS3[i] for i in range(len(pool))]
    for row, image_SS3 in enumerate(batch.image_BSS3):
        plain = [i for i, one in enumerate(originals) if np.array_equal(one, image_SS3)]
        mirrored = [i for i, one in enumerate(originals) if np.array_equal(one[:, ::-1], image_SS3)]
        (scene,) = plain or mirrored
        source = pool.object_NSS[scene] if plain else pool.object_NSS[scene][:, ::-1]
        assert np.array_equal(batch.object_BSS[row], source)
        said = {text for _, text, _ in pool.phrases[scene]}
        if plain:
            assert set(batch.texts[4 * row : 4 * row + 4]) <= said


def test_left_becomes_right_in_a_mirrored_image() -> None:
    pool = draw_pool(range(30), 32, 0)
    seen = [draw_batch(pool, 20, 4, rng("mirror", i)) for i in range(4)]
    spoken = {text for said in pool.phrases for _, text, _ in said}
    new = {text for batch in seen for text in batch.texts} - spoken
    assert any("left" in text or "right" in text for text in new)


def test_attributes_index_their_names() -> None:
    pool = draw_pool(range(2), 32, 0)
    limits = [len(values) for values in ATTRIBUTES.values()]
    assert (pool.attributes_NK4.reshape(-1, 4).max(axis=0) < limits).all()
