import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from shared.seeding import rng
from stage2_train.transforms import (
    MIRROR_WORDS,
    STRONG_OPERATIONS,
    StrongConfig,
    WeakConfig,
    draw_flip,
    flip_columns,
    mirror_words,
    resize_field,
    resize_image,
    resize_prior,
    strong_image,
)
from tests.stage2_train.miniature import random_image


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("left man", "right man"),
        ("Leftmost cup on the RIGHT", "Rightmost cup on the LEFT"),
        ("bright leftover copyright", "bright leftover copyright"),
        ("left-hand side, right.", "right-hand side, left."),
        ("top of the left", "top of the right"),
        ("far rt, LT side", "far lt, RT side"),
        ("leftish man, rightest", "rightish man, leftest"),
        ("RH side of the lhs", "LH side of the rhs"),
        ("lt blue shirt on lt", "lt blue shirt on rt"),
        ("rt blue shirt, Lt. grey", "lt blue shirt, Lt. grey"),
        ("", ""),
    ],
)
def test_mirror_words(text: str, mirrored: str) -> None:
    assert mirror_words(text) == mirrored


_words = st.sampled_from(
    sorted(MIRROR_WORDS) + [w.upper() for w in MIRROR_WORDS] + ["the", "bright", "Man,", "top"]
)


@settings(deadline=None)
@given(st.lists(_words).map(" ".join))
def test_mirroring_twice_gives_the_text_back(text: str) -> None:
    assert mirror_words(mirror_words(text)) == text


@settings(deadline=None)
@given(st.lists(_words, min_size=1).map(" ".join))
def test_mirroring_changes_only_words_of_side(text: str) -> None:
    for before, after in zip(text.split(), mirror_words(text).split(), strict=True):
        assert (before != after) == (before.lower() in MIRROR_WORDS)


def test_resize_ignores_the_aspect_ratio() -> None:
    assert resize_image(random_image(20, 24), 8, 16).shape == (8, 16, 3)


@pytest.mark.parametrize("name", STRONG_OPERATIONS)
def test_no_operation_moves_a_pixel(name: str) -> None:
    """An operation on appearance alone commutes with mirroring the columns and the rows."""
    config = StrongConfig(blur_reference_px=0)
    array = np.asarray(random_image(24, 24, seed=3))
    results = []
    for flip in (lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1]):
        flipped = np.ascontiguousarray(flip(array))
        done = np.asarray(STRONG_OPERATIONS[name](Image.fromarray(flipped), rng(1), config))
        results.append(flip(done).astype(int))
    for other in results[1:]:
        assert np.abs(results[0] - other).max() <= 1  # box blurs round differently from the other side


def test_strong_view_is_a_function_of_its_key() -> None:
    array, config = np.asarray(random_image()), StrongConfig()
    first = [strong_image(array, rng(seed), config) for seed in range(12)]
    again = [strong_image(array, rng(seed), config) for seed in reversed(range(12))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) > 6
    assert all(a.shape == array.shape and a.dtype == np.uint8 for a in first)


def test_no_operation_is_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STRONG_OPERATIONS:
        monkeypatch.setitem(
            STRONG_OPERATIONS, name, lambda image, rng, config, name=name: done.append(name) or image
        )
    for seed in range(5):
        done: list[str] = []
        strong_image(np.asarray(random_image()), rng(seed), StrongConfig(operations=len(STRONG_OPERATIONS)))
        assert sorted(done) == sorted(STRONG_OPERATIONS)


def test_blur_shrinks_with_the_image() -> None:
    image = random_image(240, 24)
    config = StrongConfig(blur_sigma_low=2.0, blur_sigma_high=2.0, blur_reference_px=480)
    blurred = STRONG_OPERATIONS["blur"](image, rng(0), config)
    assert np.array_equal(np.asarray(blurred), np.asarray(image.filter(ImageFilter.GaussianBlur(1.0))))


@pytest.mark.parametrize(("bits", "values"), [(1, {0, 128}), (8, set(range(256)))])
def test_posterize_keeps_as_many_bits_as_allowed(bits: int, values: set[int]) -> None:
    config = StrongConfig(posterize_low=bits, posterize_high=bits)
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    assert set(np.asarray(STRONG_OPERATIONS["posterize"](ramp, rng(0), config)).flat) == values


def test_no_operations_change_nothing() -> None:
    array = np.asarray(random_image())
    assert np.array_equal(strong_image(array, rng(0), StrongConfig(operations=0)), array)


def test_flip_probability() -> None:
    flips = [draw_flip(rng(seed), WeakConfig(flip_probability=0.2)) for seed in range(400)]
    assert 50 < sum(flips) < 110
    assert all(draw_flip(rng(seed), WeakConfig(flip_probability=1.0)) for seed in range(50))
    assert not any(draw_flip(rng(seed), WeakConfig(flip_probability=0.0)) for seed in range(50))


def test_flip_columns_leaves_rows() -> None:
    array = np.arange(6).reshape(2, 3)
    assert flip_columns(array).tolist() == [[2, 1, 0], [5, 4, 3]]


def test_prior_is_resized_in_the_normalised_frame() -> None:
    proposal = torch.tensor([[[0, 255], [0, 255]]], dtype=torch.uint8)
    prob = resize_prior(proposal, 4, 4)
    assert prob.shape == (1, 1, 4, 4)
    assert torch.allclose(prob[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))
    assert torch.equal(resize_prior(proposal, 2, 2)[0, 0], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def test_prior_resize_commutes_with_mirroring() -> None:
    proposal = torch.randint(0, 256, (2, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        resize_prior(proposal.flip(-1), 7, 9), resize_prior(proposal, 7, 9).flip(-1), atol=1e-6
    )


def test_a_thin_thing_survives_a_smaller_size() -> None:
    """Bilinear samples would step over columns of the grid; the share of what is covered stays."""
    proposal = torch.zeros(16, 16, 16, dtype=torch.uint8)
    proposal[torch.arange(16), :, torch.arange(16)] = 255
    mean = resize_prior(proposal, 4, 4).mean(dim=(1, 2, 3))
    assert torch.allclose(mean, torch.full((16,), 1 / 16))


def test_field_is_resized_in_place() -> None:
    field = torch.zeros(1, 1, 4, 4)
    field[..., :2, 2:] = 1.0
    assert resize_field(field, (2, 2)).tolist() == [[[[0.0, 1.0], [0.0, 0.0]]]]
    assert resize_field(field, (8, 8))[0, 0, 0, 7] == 1.0
    assert resize_field(field[..., 1:3], (4, 4))[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resize_field(field[..., 1:3], (2, 4))[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
