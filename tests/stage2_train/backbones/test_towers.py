"""Every family of towers, tiny, with random weights of the real classes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import BertModel, PreTrainedTokenizerFast

from shared.errors import DataError
from stage2_train.backbones import TEXT_TOWERS, VISION_TOWERS, build_text, build_vision
from stage2_train.backbones.pretrained import pretrained_folder
from stage2_train.segmentor import ReferringSegmentor, build_segmentor
from stage2_train.segmentor_config import (
    EMBEDDED,
    TEXT_KINDS,
    VISION_KINDS,
    WINDOWED,
    SegmentorConfig,
    SesmConfig,
    TextConfig,
    VisionConfig,
    without_pretrained,
)
from stage2_train.text import Tokenizer


def vision_config(kind: str, **changes: Any) -> VisionConfig:
    if kind in WINDOWED:
        changes = {"heads": (1, 1, 2, 2), "window": 2, **changes}
    return VisionConfig(kind=kind, image_size=64, embed_dim=8, depths=(1, 2, 1, 1), **changes)  # type: ignore[arg-type]


def text_config(kind: str, **changes: Any) -> TextConfig:
    options: dict[str, Any] = {
        "tokenizer": EMBEDDED if kind == "bert" else "none",
        "vocab_size": 256, "hidden": 16, "layers": 2, "heads": 2, "mlp": 16, "positions": 32,
        "dropout": 0.0, **changes,
    }  # fmt: skip
    return TextConfig(kind=kind, **options)  # type: ignore[arg-type]


def network(vision: VisionConfig, text: TextConfig) -> ReferringSegmentor:
    torch.manual_seed(0)
    config = SegmentorConfig(
        vision=vision, text=text, decoder_width=8, decoder_norm="group", sesm=SesmConfig()
    )
    return build_segmentor(config)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    ids = torch.randint(1, 200, (2, 5), generator=generator)
    return torch.randn(2, 3, 64, 64, generator=generator), ids, mask


def test_the_kinds_of_the_config_are_the_towers_there_are() -> None:
    assert tuple(VISION_TOWERS) == VISION_KINDS, (
        "a tower stands in VisionKind and in VISION_TOWERS, in one order"
    )
    assert tuple(TEXT_TOWERS) == TEXT_KINDS, "a tower stands in TextKind and in TEXT_TOWERS, in one order"


@pytest.mark.parametrize(
    ("vision", "text"),
    [*((kind, "bert") for kind in VISION_KINDS), *(("swin", kind) for kind in TEXT_KINDS[1:])],
)
def test_every_parameter_of_every_family_learns(vision: str, text: str) -> None:
    model = network(vision_config(vision, drop_path=0.0), text_config(text))
    image, ids, mask = batch()
    maps = model.features(image, ids, mask)
    assert [tuple(m.shape[1:]) for m in maps.read] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    logit = model(image, ids, mask, torch.rand(2, 1, 16, 16))
    assert logit.shape == (2, 2, 64, 64) and torch.isfinite(logit).all()
    logit.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_channels_need_not_double() -> None:
    model = network(vision_config("convnextv2", stage_dims=(8, 24, 32, 40)), text_config("bert"))
    image, ids, mask = batch()
    maps = model.features(image, ids, mask)
    assert [tuple(m.shape[1:]) for m in maps.read] == [(8, 16, 16), (24, 8, 8), (32, 4, 4), (40, 2, 2)]
    assert model(image, ids, mask, torch.rand(2, 1, 16, 16)).shape == (2, 2, 64, 64)


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_cut_at_its_stages_a_tower_is_the_whole_one(kind: str) -> None:
    """With nothing between the stages, the maps are the hidden states of the library's own forward pass."""
    torch.manual_seed(1)
    tower = build_vision(vision_config(kind)).eval()
    image = batch()[0]
    tokens, grid = tower.embed(image)
    for stage in range(4):
        tokens = tower.blocks(stage, tokens, grid)
        tokens, grid = tower.merge(stage, tokens, grid)
    whole = inner_of(tower)(image).last_hidden_state
    whole = whole if whole.ndim == 3 else whole.flatten(2).transpose(1, 2)
    extra = whole.shape[1] - tokens.shape[1]  # such as their mean, in front
    assert torch.allclose(tokens, whole[:, extra:], atol=1e-5)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_padding_is_not_attended_to(kind: str) -> None:
    tower = build_text(text_config(kind)).eval()
    _, ids, mask = batch()
    words = tower(ids, mask)
    assert words.shape == (2, 5, 16)
    assert torch.allclose(words[1, :3], tower(ids[1:, :3], mask[1:, :3])[0], atol=1e-5)
    changed = ids.clone()
    changed[1, 3:] = 7
    assert torch.allclose(words[1, :3], tower(changed, mask)[1, :3], atol=1e-5)


def inner_of(tower: nn.Module) -> Any:
    (inner,) = (child for name, child in tower.named_children() if name != "norms")
    return inner


@pytest.mark.parametrize("kind", [*VISION_KINDS, *TEXT_KINDS])
def test_a_pretrained_folder_is_loaded_and_a_model_folder_does_not_need_it(kind: str, tmp_path: Path) -> None:
    build, config = (
        (build_vision, vision_config(kind)) if kind in VISION_KINDS else (build_text, text_config(kind))
    )
    torch.manual_seed(5)
    written = build(config)  # type: ignore[operator]
    inner = inner_of(written)
    complete = type(inner)(inner.config)  # with the parts that the segmentor leaves out
    complete.load_state_dict(inner.state_dict(), strict=False)
    complete.save_pretrained(tmp_path / "tower")
    loaded = build(dataclasses.replace(config, weights=str(tmp_path / "tower")))  # type: ignore[operator]
    assert loaded.state_dict().keys() == written.state_dict().keys()
    for name, value in inner.state_dict().items():
        assert torch.equal(inner_of(loaded).state_dict()[name], value), name
    vision, text = vision_config("swin"), text_config("bert")
    towers = (loaded.config, text) if kind in VISION_KINDS else (vision, loaded.config)
    model = network(*towers)  # type: ignore[arg-type]
    alone = without_pretrained(model.config)
    assert alone.vision.kind == model.config.vision.kind and alone.text.kind == model.config.text.kind
    if model.config.text.kind == "bert":  # the others have no embedded tokenizer
        model.save_pretrained(tmp_path / "model")
        again = ReferringSegmentor.from_pretrained(tmp_path / "model")
        assert torch.equal(again(*batch()), model.eval()(*batch()))


def test_swin_v2_takes_weights_of_smaller_windows_when_told_so(tmp_path: Path) -> None:
    """No tensor depends on the window; its positions are those that the weights know."""
    inner = inner_of(build_vision(vision_config("swinv2")))
    type(inner)(inner.config).save_pretrained(
        tmp_path / "tower"
    )  # with the norm that the segmentor leaves out
    wide = {"window": 4, "weights": str(tmp_path / "tower")}
    with pytest.raises(DataError, match="has window_size 2, not 4"):
        build_vision(vision_config("swinv2", **wide))
    torch.manual_seed(1)
    tower = build_vision(vision_config("swinv2", pretrained_windows=(2, 2, 2, 2), **wide))
    assert inner_of(tower).config.pretrained_window_sizes in ([2] * 4, (2,) * 4)
    assert all(torch.isfinite(one).all() for one in tower.state_dict().values())


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    tower = build_vision(vision_config("convnextv2"))
    inner_of(tower).save_pretrained(tmp_path / "no-norm")
    wide = dataclasses.replace(
        vision_config("convnextv2", weights=str(tmp_path / "no-norm")), depths=(1, 1, 1, 1)
    )
    with pytest.raises(DataError, match=r"vision.weights: .*no-norm has depths \[1, 2, 1, 1\], not"):
        build_vision(wide)
    bert = BertModel(inner_of(build_text(text_config("bert"))).config, add_pooling_layer=False)
    state = bert.state_dict()
    del state["embeddings.LayerNorm.weight"]
    bert.save_pretrained(tmp_path / "torn", state_dict=state)
    with pytest.raises(DataError, match=r"text.weights: .*torn lacks tensor embeddings.LayerNorm.weight"):
        build_text(text_config("bert", weights=str(tmp_path / "torn")))
    with pytest.raises(DataError, match=r"text.weights: no/such \(revision v1\) is neither a folder nor"):
        build_text(text_config("bert", weights="no/such@v1"))
    with pytest.raises(DataError, match=r"text.weights: /no/such/folder is neither a folder nor the name of"):
        build_text(text_config("bert", weights="/no/such/folder"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no config.json"):
        build_text(text_config("bert", weights=str(tmp_path / "empty")))


def test_a_safetensors_file_fills_one_tower(tmp_path: Path) -> None:
    torch.manual_seed(2)
    tower = build_vision(vision_config("swin"))
    tensors = {
        f"vision.{name}": value for name, value in tower.state_dict().items() if name.startswith("swin.")
    }
    save_file(tensors, tmp_path / "swin.safetensors")
    loaded = build_vision(vision_config("swin", weights=str(tmp_path / "swin.safetensors")))
    name = "swin.encoder.layers.1.blocks.1.mlp.fc2.weight"
    assert torch.equal(loaded.state_dict()[name], tower.state_dict()[name])
    save_file(tensors | {"decoder.weight": torch.ones(1)}, tmp_path / "whole.safetensors")
    with pytest.raises(DataError, match="holds tensors of decoder too, .* name it by segmentor.weights"):
        build_vision(vision_config("swin", weights=str(tmp_path / "whole.safetensors")))
    del tensors["vision." + name]
    save_file(tensors, tmp_path / "swin.safetensors")
    with pytest.raises(DataError, match=f"lacks tensor vision.{name}"):
        build_vision(vision_config("swin", weights=str(tmp_path / "swin.safetensors")))
    with pytest.raises(DataError, match="does not exist"):
        build_vision(vision_config("swin", weights=str(tmp_path / "none.safetensors")))


def test_a_repository_of_the_local_cache_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--swin"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    inner = build_vision(vision_config("swin"))
    complete = type(inner_of(inner))(inner_of(inner).config, add_pooling_layer=False)
    complete.save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("owner/swin", "owner/swin@main", "owner/swin@" + "0" * 40):
        assert pretrained_folder(name, "vision.weights") == snapshot
    build_vision(vision_config("swin", weights="owner/swin"))


def test_stochastic_depth_of_swin_skips_attention_and_mlp() -> None:
    """The library's block would still add its MLP."""
    torch.manual_seed(0)
    tower = build_vision(vision_config("swin", drop_path=0.9999)).train()
    tokens, _ = tower.embed(batch()[0])
    wide = torch.randn(2, 4, 64)
    assert torch.equal(tower.blocks(3, wide, (2, 2)), wide)
    assert not torch.equal(tower.blocks(0, tokens, (16, 16)), tokens), "the first block is never dropped"
    assert not torch.equal(tower.eval().blocks(3, wide, (2, 2)), wide)


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_masked_window_leaves_no_weight_at_all(kind: str) -> None:
    """The library's mask of -100 leaves weights of 1e-44, and CPUs are slow with those."""
    seen: list[Tensor] = []
    tower = build_vision(vision_config(kind)).eval()
    shifted = inner_of(tower).encoder.layers[1].blocks[1].attention
    shifted.register_forward_hook(lambda _, arguments, __: seen.append(arguments[1]))
    tower.blocks(1, torch.randn(1, 64, 16), (8, 8))
    (mask,) = seen
    assert (mask < 0).any() and (mask == 0).any()
    assert torch.exp(mask[mask < 0]).max() == 0


def test_other_families_read_tokenizer_json(tmp_path: Path) -> None:
    raw = RawTokenizer(
        WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, "red": 3, "star": 4}, unk_token="<unk>")
    )
    raw.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    raw.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>").save_pretrained(tmp_path)
    config = network(vision_config("swin"), text_config("siglip")).config
    with pytest.raises(
        DataError, match="text.tokenizer is embedded, a vocabulary for text.kind bert, not siglip"
    ):
        text_config("siglip", tokenizer=EMBEDDED)
    config = dataclasses.replace(config, text=text_config("siglip", tokenizer=str(tmp_path)))
    ids, mask = Tokenizer(config)(["Red star", "star"])
    assert ids.tolist() == [[3, 4, 1], [4, 1, 0]] and mask.tolist() == [[True] * 3, [True, True, False]]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("swin", {"heads": ()}, "vision.heads"),
        ("swin", {"window": 0}, "vision.window"),
        ("swin", {"pretrained_windows": (2, 2, 2, 2)}, "pretrained_windows"),
        ("swinv2", {"absolute_positions": True}, "absolute_positions"),
        ("swinv2", {"pretrained_windows": (2,)}, "pretrained_windows"),
        ("convnextv2", {"window": 2}, "no heads or window"),
        ("convnextv2", {"stage_dims": (8, 16, 32)}, "vision.stage_dims"),
        ("convnextv2", {"stage_dims": (16, 16, 32, 64)}, "the first vision.embed_dim 8"),
        ("swin", {"stage_dims": (8, 16, 32, 64)}, "none for swin and swinv2"),
        ("dinov3-convnext", {"patch": 2}, "vision.patch"),
        ("no-such-tower", {}, "vision.kind"),
    ],
)
def test_what_a_family_does_not_have_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        vision_config(kind, **changes)
    with pytest.raises(DataError, match="text.kind"):
        text_config("no-such-tower")
    with pytest.raises(DataError, match="must be a multiple of 32"):
        dataclasses.replace(vision_config("convnextv2"), image_size=48)
