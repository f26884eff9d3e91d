"""The segmentor as a whole, on a very small network with random weights."""

import dataclasses

import pytest
import torch

from shared.errors import DataError
from stage2_train.segmentor import build_segmentor
from stage2_train.segmentor_config import (
    paper_config,
)
from stage2_train.text import Tokenizer, mean_pool
from stage2_train.word_attention import LanguageGate, PixelWordAttention, instance_norm
from tests.stage2_train.small_segmentor import small_config, small_model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids, mask = Tokenizer(small_config())(["red star", "the small blue circle on the left"])
    return torch.randn(2, 3, 32, 32, generator=generator), ids, mask


def test_output_is_two_logits_at_input_resolution() -> None:
    logit = small_model()(*batch())
    assert logit.shape == (2, 2, 32, 32) and torch.isfinite(logit).all()


def test_a_finer_decoder_output_is_not_an_interpolation_of_the_coarse_one() -> None:
    fine = build_segmentor(dataclasses.replace(small_config(), decoder_upscale=2)).eval()
    image, ids, mask = batch()
    coarse_hw = fine.features(image, ids, mask).read[0].shape[-2:]
    logit = fine.decoder(fine.features(image, ids, mask).read)
    assert logit.shape == (2, 2, 2 * coarse_hw[0], 2 * coarse_hw[1])
    assert (logit[..., ::2, ::2] - logit[..., 1::2, ::2]).abs().max() > 1e-3, "the four sub-pixels differ"
    assert fine(image, ids, mask).shape == (2, 2, 32, 32)


def test_every_parameter_learns_but_the_last_gate() -> None:
    """The last stage's gate feeds nothing without structural enhancement (as in LAVT); with it, everything learns."""
    for sesm in (False, True):
        model = small_model(sesm)
        field = {"field_B1HW": torch.rand(2, 1, 16, 16)} if sesm else {}
        model(*batch(), **field).square().mean().backward()
        idle = {name for name, p in model.named_parameters() if p.grad is None}
        expected = set() if sesm else {"fusion.3.gate.reduce.weight", "fusion.3.gate.expand.weight"}
        assert idle == expected


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_without_field_is_exactly_the_plain_pass(mode: str) -> None:
    model = small_model(sesm=True)
    model.train(mode == "train")
    image, ids, mask = batch()
    field = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    plain = model(image, ids, mask)
    mixed = model(image, ids, mask, field, torch.tensor([1]))
    assert torch.equal(mixed[0], plain[0])
    assert not torch.equal(mixed[1], plain[1])
    field[0] = float("nan")
    unseen = model(image, ids, mask, field, torch.tensor([], dtype=torch.int64))
    assert torch.equal(unseen, plain)
    unseen.sum().backward()
    assert model.sesm is not None and all(p.grad is None for p in model.sesm.parameters())


def test_the_plain_pass_is_the_network_without_the_module() -> None:
    with_module, without = small_model(sesm=True).eval(), small_model().eval()
    without.load_state_dict(
        {name: value for name, value in with_module.state_dict().items() if not name.startswith("sesm.")}
    )
    assert torch.equal(with_module(*batch()), without(*batch()))


def test_flags_in_the_place_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="by number"):
        small_model(sesm=True)(*batch(), torch.rand(2, 1, 8, 8), torch.tensor([True, False]))


def test_a_field_for_a_network_without_the_module_is_refused() -> None:
    with pytest.raises(ValueError, match="without sesm"):
        small_model()(*batch(), torch.rand(2, 1, 8, 8))


def test_samples_do_not_see_each_other_and_padding_changes_nothing() -> None:
    model = small_model().eval()
    image, ids, mask = batch()
    together = model(image, ids, mask)
    length = int(mask[0].sum())
    alone = model(image[:1], ids[:1, :length], mask[:1, :length])
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_the_expression_matters() -> None:
    model = small_model().eval()
    image, ids, mask = batch()
    swapped = model(image, ids.flip(0), mask.flip(0))
    assert (swapped - model(image, ids, mask)).abs().max() > 1e-4


def test_several_expressions_share_an_image() -> None:
    model = small_model().eval()
    image, ids, mask = batch()
    shared = model(image[:1], ids, mask)
    assert torch.allclose(shared, model(image[:1].repeat(2, 1, 1, 1), ids, mask), atol=1e-5)


def test_word_attention_ignores_padding_and_gate_is_equation() -> None:
    torch.manual_seed(0)
    attention, gate = PixelWordAttention(8, 5), LanguageGate(8)
    visual, text = torch.randn(1, 6, 8), torch.randn(1, 4, 5)
    mask = torch.tensor([[True, True, True, False]])
    fused = attention(visual, text, mask)
    text[0, 3] = 100.0
    assert torch.allclose(fused, attention(visual, text, mask))
    expected = visual + torch.tanh(gate.expand(gate.reduce(fused).relu())) * fused
    assert torch.equal(gate(visual, fused), expected)


def test_instance_norm_is_torchs() -> None:
    x_BNC = torch.randn(2, 7, 3) * 4 + 1
    expected = torch.nn.functional.instance_norm(x_BNC.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(instance_norm(x_BNC), expected, atol=1e-5)


def test_instance_norm_is_computed_in_float32() -> None:
    """Of channels whose positions differ little from each other, bfloat16 alone would leave noise."""
    x_BNC = (torch.randn(2, 400, 3) * 0.1 + 5).bfloat16()
    normed_BNC = instance_norm(x_BNC)
    assert normed_BNC.dtype == torch.bfloat16
    assert torch.equal(normed_BNC, instance_norm(x_BNC.float()).bfloat16())


@pytest.mark.parametrize("alike", [0.0, 3.0])
def test_word_attention_in_bfloat16_keeps_what_words_say(alike: float) -> None:
    """Words that have much in common, as those of BERT do; what they share says nothing under an instance norm."""
    torch.manual_seed(0)
    attention = PixelWordAttention(128, 768)
    visual, mask = torch.randn(2, 900, 128), torch.ones(2, 12, dtype=torch.bool)
    mask[0, 7:] = False
    text = torch.randn(2, 12, 768) + alike * torch.randn(1, 1, 768)
    with torch.no_grad():
        exact = attention(visual, text, mask)
        with torch.autocast("cpu", torch.bfloat16):
            rough = attention(visual, text, mask)
    assert float((rough - exact).norm() / exact.norm()) < 0.025


@pytest.mark.slow
def test_compiled_it_is_the_same_network() -> None:
    """Captured and differentiated by torch.compile, without generated code: forward and backward."""
    model = small_model().eval()
    compiled = torch.compile(model, backend="aot_eager")
    expected, got = model(*batch()), compiled(*batch())
    assert torch.allclose(got, expected, atol=1e-5)
    (theirs,) = torch.autograd.grad(expected.square().mean(), model.decoder.classify.weight)
    (ours,) = torch.autograd.grad(got.square().mean(), model.decoder.classify.weight)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_text_embedding_is_the_detached_mean_of_words() -> None:
    model = small_model().eval()
    _, ids, mask = batch()
    embedding = model.text_embedding(ids, mask)
    words = model.text(ids, mask)[0][mask[0]]
    assert embedding.shape == (2, 16) and not embedding.requires_grad
    assert torch.allclose(embedding[0], words.mean(dim=0), atol=1e-5)
    assert mean_pool(torch.ones(1, 2, 3), torch.tensor([[False, False]])).abs().max() == 0


def test_tokenizer_spells_unknown_words_and_cuts_long_ones() -> None:
    tokenizer = Tokenizer(small_config())
    ids, mask = tokenizer(["Red STAR", "red star", "zebra", " ".join(["star"] * 40)])
    assert torch.equal(ids[0], ids[1])
    assert ids.shape == mask.shape == (4, 20)
    assert int(mask[2].sum()) == 2 + len("zebra")
    assert bool(mask[3].all())


def test_texts_of_one_length_are_the_same_texts() -> None:
    """For compiled code: padding changes no answer."""
    ids, mask = Tokenizer(small_config(), one_length=True)(["red star"])
    assert ids.shape == mask.shape == (1, 20)
    short_ids, short_mask = Tokenizer(small_config())(["red star"])
    length = short_ids.shape[1]
    assert torch.equal(ids[:, :length], short_ids) and torch.equal(mask[:, :length], short_mask)
    assert length < 20 and not bool(mask[:, length:].any())


def test_a_missing_tokenizer_is_named() -> None:
    with pytest.raises(DataError, match="text.tokenizer: .* neither a folder"):
        Tokenizer(paper_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_width": 12}, "decoder_width"),
        ({"decoder_upscale": 0}, "decoder_upscale"),
        ({"weight_parts": ("vision", "head")}, "weight_parts"),
        ({"decoder_norm": "layer"}, "decoder_norm"),
    ],
)
def test_bad_configs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(small_config(), **change)  # type: ignore[arg-type]


def test_bad_towers_are_refused() -> None:
    with pytest.raises(DataError, match="do not divide"):
        dataclasses.replace(small_config().vision, heads=(3, 1, 1, 1))
    with pytest.raises(DataError, match="not a multiple"):
        dataclasses.replace(small_config().vision, image_size=30)
    with pytest.raises(DataError, match="max_tokens"):
        dataclasses.replace(small_config().text, max_tokens=64)
