"""Published checkpoints: LAVT's plain re-statement, converted, gives the same output; what does not fit is named."""

import argparse
import copy
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import cli
from shared.config import apply_overrides
from shared.errors import DataError
from stage2_train.backbones import build_vision
from stage2_train.official_weights import convert
from stage2_train.segmentor import build_segmentor
from stage2_train.segmentor_config import EMBEDDED, SegmentorConfig, TextConfig, VisionConfig
from tests.stage2_train.lavt_reference import Lavt

DIM, DEPTHS, HEADS, WINDOW, TEXT_DIM = 8, (1, 2, 3, 1), (1, 2, 2, 4), 3, 16


def config(weights: Path | None = None, **changes: Any) -> SegmentorConfig:
    own = SegmentorConfig(
        vision=VisionConfig(image_size=64, embed_dim=DIM, depths=DEPTHS, heads=HEADS, window=WINDOW, drop_path=0.3),
        text=TextConfig(
            tokenizer=EMBEDDED, vocab_size=256, hidden=TEXT_DIM, layers=2, heads=2, mlp=32, positions=32
        ),
        decoder_width=4 * DIM,
        weights=None if weights is None else str(weights),
        weight_parts=("vision", "text", "fusion", "decoder"),
    )  # fmt: skip
    return dataclasses.replace(own, **changes)


def bert() -> BertModel:
    own = BertConfig(
        vocab_size=256, hidden_size=TEXT_DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    return BertModel(own, add_pooling_layer=False)


def scatter(module: nn.Module) -> None:
    """Random values everywhere, batch statistics included, so that no two tensors could be swapped unseen."""
    generator = torch.Generator().manual_seed(11)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator) - 0.5
            spread = 0.5 if value.ndim == 1 or "bias_table" in name else 3.0 / value[0].numel() ** 0.5
            value.copy_(
                noise * spread + (1.0 if "norm" in name.lower() or "bn" in name or "var" in name else 0.0)
            )


@pytest.fixture(scope="module")
def reference() -> Iterator[tuple[Lavt, BertModel]]:
    lavt, words = Lavt(DIM, DEPTHS, HEADS, WINDOW, TEXT_DIM).eval(), bert().eval()
    scatter(lavt)
    scatter(words)
    yield lavt, words


def published(lavt: Lavt, words: BertModel, one_piece: bool = False) -> dict[str, Any]:
    """As saved by its training script (BERT beside the network, or inside it), or with a wrapper's prefix."""
    rest = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=5e-5, model="lavt")}
    model, text = dict(lavt.state_dict()), dict(words.state_dict())
    text["embeddings.position_ids"] = torch.arange(32)[None]
    if not one_piece:
        return {"model": model, "bert_model": text, **rest}
    inside = {f"text_encoder.{name}": value for name, value in text.items()}
    return {"model": {f"module.{name}": value for name, value in (model | inside).items()}, **rest}


def batch(height: int = 64, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    ids = torch.randint(1, 256, (2, 6), generator=generator)
    return torch.randn(2, 3, height, width, generator=generator), ids, mask


@pytest.mark.parametrize("one_piece", [False, True], ids=["bert beside", "in one piece"])
def test_same_weights_same_output(reference: tuple[Lavt, BertModel], one_piece: bool, tmp_path: Path) -> None:
    """To 1e-4 in float32 (1.6e-5 was seen); in float64 only rounding is left, so it is the same function."""
    torch.save(published(*reference, one_piece), tmp_path / "lavt.pth")
    answer = convert(tmp_path / "lavt.pth", tmp_path / "lavt.safetensors", "lavt")
    assert answer["tensors"] == len(load_file(tmp_path / "lavt.safetensors"))
    assert answer["note"].endswith("starts from a network whose own labels are not counted")
    options = shlex.split(answer["use"])
    assert options[::2] == ["--set", "--set"] and not answer["use"].count("vision.weights")
    told = apply_overrides(config(None), [one.removeprefix("segmentor.") for one in options[1::2]])
    assert told.weights == str(tmp_path / "lavt.safetensors")
    assert set(told.weight_parts) == {"vision", "text", "fusion", "decoder"}
    model = build_segmentor(told).eval()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        lavt, words = (copy.deepcopy(part).to(dtype) for part in reference)
        model.to(dtype)
        for size in ((64, 64), (52, 72)):  # the second leaves odd maps to pad
            image, ids, mask = batch(*size)
            with torch.no_grad():
                features = words(input_ids=ids, attention_mask=mask.long()).last_hidden_state.mT
                expected = lavt(image.to(dtype), features, mask)
                got = model(image.to(dtype), ids, mask)
            assert expected.std() > 0.05, "the comparison says something"
            assert (got - expected).abs().max() < tolerance


def test_gradients_agree_too(reference: tuple[Lavt, BertModel], tmp_path: Path) -> None:
    """In training mode without dropout: batch statistics as well as what flows back."""
    lavt, words = copy.deepcopy(reference)
    torch.save(published(lavt, words), tmp_path / "lavt.pth")
    convert(tmp_path / "lavt.pth", tmp_path / "lavt.safetensors", "lavt")
    own = config(tmp_path / "lavt.safetensors")
    model = build_segmentor(dataclasses.replace(own, vision=dataclasses.replace(own.vision, drop_path=0.0)))
    image, ids, mask = batch()
    model.train()
    model.text.eval()  # BERT alone has dropout
    lavt.train()
    expected = lavt(image, words(input_ids=ids, attention_mask=mask.long()).last_hidden_state.mT, mask)
    got = model(image, ids, mask)
    assert (got - expected).abs().max() < 1e-4
    expected.square().mean().backward()
    got.square().mean().backward()
    theirs = lavt.backbone.layers[0].fusion.image_lang_att.f_key[0].weight.grad
    ours = model.fusion[0].attention.key.weight.grad
    assert ours is not None and torch.allclose(ours, theirs.squeeze(-1), rtol=1e-3, atol=1e-5)


def swin_state() -> dict[str, Tensor]:
    """A published Swin of the tiny shape: LAVT's trunk, its classifier and the tables it saves."""
    lavt = Lavt(DIM, DEPTHS, HEADS, WINDOW, TEXT_DIM)
    trunk = {
        name: value
        for name, value in lavt.backbone.state_dict().items()
        if not any(part in name for part in ("fusion", "res_gate", "norm0"))
        and not name.startswith(("norm1", "norm2", "norm3"))
    }
    more = {"norm.weight": torch.ones(64), "norm.bias": torch.zeros(64), "head.weight": torch.ones(5, 64),
            "head.bias": torch.zeros(5), "layers.1.blocks.1.attn_mask": torch.zeros(4, 9, 9)}  # fmt: skip
    return trunk | more


def test_a_published_swin_fills_the_vision_tower(tmp_path: Path) -> None:
    state = swin_state()
    torch.save({"model": state}, tmp_path / "swin.pth")
    answer = convert(tmp_path / "swin.pth", tmp_path / "swin.safetensors", "swin")
    assert answer["ignored"] == 5 + sum(DEPTHS) and list(answer["parameters"]) == ["vision"]
    assert answer["use"] == f"--set segmentor.vision.weights={tmp_path / 'swin.safetensors'}"
    assert "note" not in answer  # photographs and their classes: no mask
    vision = dataclasses.replace(config().vision, weights=str(tmp_path / "swin.safetensors"))
    tower = build_vision(vision).state_dict()
    value = state["layers.2.blocks.1.attn.qkv.weight"]
    for row, letter in enumerate("qkv"):
        part = tower[f"swin.encoder.layers.2.blocks.1.attention.{letter}_proj.weight"]
        assert torch.equal(part, value[32 * row : 32 * (row + 1)])
    assert torch.equal(
        tower["swin.encoder.layers.0.downsample.norm.bias"], state["layers.0.downsample.norm.bias"]
    )


def test_what_is_no_such_checkpoint_is_named(tmp_path: Path, reference: tuple[Lavt, BertModel]) -> None:
    target, source = tmp_path / "out.safetensors", tmp_path / "in.pth"

    def refused(message: str, content: Any, family: str = "swin") -> None:
        torch.save(content, source)
        with pytest.raises(DataError, match=message):
            convert(source, target, family)

    with pytest.raises(DataError, match="no such file"):
        convert(source, target, "swin")
    refused(
        "in.pth: tensor layers.0.surprise is not in the key map",
        {"model": {"layers.0.surprise": torch.ones(1)}},
    )
    refused("in.pth: epoch is a int, not a tensor", {"epoch": 3})
    refused("holds a list", [1, 2])
    refused("no tensor of the text part", {"model": reference[0].state_dict()}, "lavt")
    refused("must be one of swin, lavt", {}, "timm")
    refused("can be read safely", {"model": Path("x")})  # not a tensor: reading it would call a class
    source.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="can be read safely"):
        convert(source, target, "swin")
    with pytest.raises(DataError, match="must end in .safetensors"):
        convert(source, tmp_path / "out.pth", "swin")
    assert not target.exists()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": swin_state()}, tmp_path / "swin.pth")
    arguments = [
        "weights",
        "convert",
        str(tmp_path / "swin.pth"),
        str(tmp_path / "o.safetensors"),
        "--from",
        "swin",
    ]
    monkeypatch.setattr(sys, "argv", ["l2l", *arguments, "--json"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert not exit_info.value.code
    assert json.loads(capfd.readouterr().out)["tensors"] == len(load_file(tmp_path / "o.safetensors"))
