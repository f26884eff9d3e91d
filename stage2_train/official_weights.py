"""Published checkpoints of Swin and LAVT, as safetensors under this network's names.

`l2l weights convert IN.pth OUT.safetensors --from swin|lavt`. The key map is the tables below: a regular expression
over the published name, and our name. A tensor that no line knows is an error, so nothing is lost without being said.

- Swin (`swin_base_patch4_window12_384_22k.pth` and its like: `{"model": state}`) gives `vision.swin.*`. Use it as
  `segmentor.vision.weights`.
- LAVT (`{"model": state, "bert_model": state, ...}`, or in one piece with BERT under `text_encoder.`) gives the whole
  network. Use it as `segmentor.weights` with `segmentor.weight_parts=vision,text,fusion,decoder`.

Two things differ besides names: a fused `qkv` layer is cut into three, and the 1x1 convolutions of LAVT's word
attention are linear layers here. What a checkpoint holds of optimiser, schedule and arguments is ignored.
"""

import argparse
import pickle
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.config import as_options
from shared.errors import DataError
from shared.store.publish import publishing
from stage2_train.segmentor_config import UNCOUNTED

Rules = Sequence[tuple[str, str]]

_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OUR_BLOCK = r"vision.swin.encoder.layers.\1.blocks.\2."

SWIN_RULES: Rules = (
    (r"patch_embed\.proj\.", "vision.swin.embeddings.patch_embeddings.projection."),
    (r"patch_embed\.norm\.", "vision.swin.embeddings.norm."),
    (_BLOCK + r"norm1\.", _OUR_BLOCK + "layernorm_before."),
    (_BLOCK + r"norm2\.", _OUR_BLOCK + "layernorm_after."),
    (_BLOCK + r"attn\.qkv\.", _OUR_BLOCK + "attention.qkv."),
    (_BLOCK + r"attn\.proj\.", _OUR_BLOCK + "attention.o_proj."),
    (
        _BLOCK + r"attn\.relative_position_bias_table",
        _OUR_BLOCK + "attention.relative_position_bias.relative_position_bias_table",
    ),
    (_BLOCK + r"mlp\.(fc[12])\.", _OUR_BLOCK + r"mlp.\3."),
    (r"layers\.(\d+)\.downsample\.", r"vision.swin.encoder.layers.\1.downsample."),
)
"""Trunk of Swin; LAVT has the same names below `backbone.`."""

SWIN_IGNORED = (
    r"layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)",
    r"(norm|head)\.(weight|bias)",
)
"""Tables that follow from the shape, and the classifier with its norm."""

LAVT_RULES: Rules = (
    *((r"backbone\." + old, new) for old, new in SWIN_RULES),
    (r"backbone\.norm(\d)\.", r"vision.norms.\1."),
    (r"backbone\.layers\.(\d)\.fusion\.vis_project\.0\.", r"fusion.\1.attention.visual."),
    (
        r"backbone\.layers\.(\d)\.fusion\.image_lang_att\.f_(query|key|value)\.0\.",
        r"fusion.\1.attention.\2.",
    ),
    (r"backbone\.layers\.(\d)\.fusion\.image_lang_att\.W\.0\.", r"fusion.\1.attention.out."),
    (r"backbone\.layers\.(\d)\.fusion\.project_mm\.0\.", r"fusion.\1.attention.project."),
    (r"backbone\.layers\.(\d)\.res_gate\.0\.", r"fusion.\1.gate.reduce."),
    (r"backbone\.layers\.(\d)\.res_gate\.2\.", r"fusion.\1.gate.expand."),
    *(
        (rf"classifier\.{layer}{conv}_{4 - join}\.", f"decoder.joins.{join}.{3 * (conv - 1) + offset}.")
        for join in range(3)
        for conv in (1, 2)
        for layer, offset in (("conv", 0), ("bn", 1))
    ),
    (r"classifier\.conv1_1\.", "decoder.classify."),
    (r"text_encoder\.(embeddings|encoder)\.", r"text.bert.\1."),
)
"""The whole of LAVT. Its decoder counts from the top: `conv1_4` joins stages 4 and 3."""

LAVT_IGNORED = (
    *(r"backbone\." + pattern for pattern in SWIN_IGNORED[:1]),
    r"text_encoder\.embeddings\.position_ids",
    r"text_encoder\.pooler\.dense\.(weight|bias)",
)
"""Tables that follow from the shape, and BERT's pooler."""


def convert(source: str | Path, target: str | Path, family: str) -> dict[str, Any]:
    """Convert a published checkpoint.

    Args:
        source: The `.pth` file; read with `weights_only=True`, so nothing in it is executed.
        target: Where the safetensors file goes; it appears whole or not at all.
        family: Key of `FAMILIES`.

    Returns:
        `file`, `tensors`, `parameters` of each part, `ignored`, `use` (the options with which a training takes it) and,
        of a whole network, a `note` on the masks it was trained with.

    Raises:
        DataError: Not such a checkpoint, or a tensor that the key map does not know.
    """
    source, target = Path(source), Path(target)
    if family not in FAMILIES:
        raise DataError(f"--from is {family!r}; it must be one of {', '.join(FAMILIES)}")
    if target.suffix != ".safetensors":
        raise DataError(f"{target}: the name must end in .safetensors")
    state = _load(source)
    try:
        tensors, ignored = FAMILIES[family](state)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with publishing(target) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, {"format": "pt"})
    parameters: dict[str, int] = {}
    for name, value in tensors.items():
        part = name.partition(".")[0]
        parameters[part] = parameters.get(part, 0) + value.numel()
    use = [f"segmentor.vision.weights={target}"]
    whole = len(parameters) > 1
    if whole:
        use = [f"segmentor.weights={target}", f"segmentor.weight_parts={','.join(parameters)}"]
    return {
        "file": str(target),
        "tensors": len(tensors),
        "parameters": parameters,
        "ignored": ignored,
        "use": shlex.join(as_options(use)),
        **({"note": f"a training with these options {UNCOUNTED}"} if whole else {}),
    }


def convert_swin(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """Tensors of a published Swin under our names, and how many were ignored."""
    renamed, ignored = _rename(_tensors(checkpoint, "model"), SWIN_RULES, SWIN_IGNORED)
    return _split_qkv(renamed), ignored


def convert_lavt(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """Tensors of a published LAVT under our names, and how many were ignored."""
    state = _tensors(checkpoint, "model")
    if "bert_model" in checkpoint:
        state |= {f"text_encoder.{name}": value for name, value in _tensors(checkpoint, "bert_model").items()}
    renamed, ignored = _rename(state, LAVT_RULES, LAVT_IGNORED)
    tensors = {
        name: value.squeeze(-1) if name.startswith("fusion.") and value.ndim == 3 else value
        for name, value in _split_qkv(renamed).items()
    }
    for part in ("vision", "text", "fusion", "decoder"):
        if not any(name.startswith(f"{part}.") for name in tensors):
            raise DataError(f"no tensor of the {part} part: not a checkpoint of LAVT")
    return tensors, ignored


FAMILIES: dict[str, Callable[[Mapping[str, Any]], tuple[dict[str, Tensor], int]]] = {
    "swin": convert_swin,
    "lavt": convert_lavt,
}
"""Conversion by the name that `--from` takes."""


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # LAVT keeps its arguments; they are ignored
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path}: not a checkpoint that can be read safely ({reason[0]})") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: holds a {type(found).__name__}, not a dictionary of tensors")
    return found


def _tensors(checkpoint: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """The state dict under `key`, or the checkpoint itself; a wrapper's `module.` is dropped."""
    state = checkpoint.get(key, checkpoint)
    if not isinstance(state, Mapping):
        raise DataError(f"entry {key!r} is a {type(state).__name__}, not a dictionary of tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise DataError(f"{name} is a {type(value).__name__}, not a tensor")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _rename(
    state: Mapping[str, Tensor], rules: Rules, ignored: Sequence[str]
) -> tuple[dict[str, Tensor], int]:
    """Apply the first rule that matches the head of each name."""
    compiled = [(re.compile(old), new) for old, new in rules]
    renamed: dict[str, Tensor] = {}
    num_ignored = 0
    for name, value in state.items():
        for pattern, new in compiled:
            match = pattern.match(name)
            if match is not None:
                renamed[match.expand(new) + name[match.end() :]] = value
                break
        else:
            if not any(re.fullmatch(pattern, name) for pattern in ignored):
                raise DataError(f"tensor {name} is not in the key map")
            num_ignored += 1
    return renamed, num_ignored


def _split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut every fused `attention.qkv` into query, key and value."""
    split: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if ".attention.qkv." not in name:
            split[name] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            split[name.replace(".qkv.", f".{letter}_proj.")] = part.clone()
    return split
