"""A random model of each further family, of its real configuration class, saved as a Hugging Face folder.

The vocabulary is the 256 bytes and the family's special tokens. Only printable ASCII and the end token have output
weights, so that answers are plain text and the logits of the rest stay at zero; large weights keep the first choice
apart from the second.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

END, PAD = "<|im_end|>", "<|endoftext|>"
QWEN = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
INTERN = (
    PAD,
    "<|im_start|>",
    END,
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
LLAVA = (PAD, "<|im_start|>", END, "<image>", "<video>")
HIDDEN, HEAD = 64, 32
TILE_PX = 56
"""Side of a tile of the tiled families; four patches of 14 pixels."""


def chat_template(image: str, role_end: str = "\n") -> str:
    """The families' templates come down to this: roles, the image's placeholder, text, and `<|im_end|>`."""
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '" + role_end + "' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '" + image + "' }}"
        "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def build_tokenizer(special: tuple[str, ...], template: str, **named: str) -> Any:
    """Bytes and special tokens; a digit is a token, as in the models these stand for."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=named,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Two layers of two heads."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def qwen3_vl() -> tuple[Any, Any]:
    """(model, processor): patches of 16 merged by 2, images of 64 x 64 to 160 x 160 pixels."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = build_tokenizer(
        QWEN,
        chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=text_config(tokenizer, head_dim=HEAD, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_heads": 2,
            "patch_size": 16,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )
    images = Qwen2VLImageProcessor(
        patch_size=16,
        merge_size=2,
        size={"shortest_edge": 64**2, "longest_edge": 160**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = Qwen3VLProcessor(
        images, tokenizer, Qwen3VLVideoProcessor(), chat_template=tokenizer.chat_template
    )
    return Qwen3VLForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """(model, processor): one to four tiles of 56 x 56 pixels, four tokens each."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
    )
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    tokenizer = build_tokenizer(
        INTERN,
        chat_template("<IMG_CONTEXT>\n"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        text_config=text_config(tokenizer, model_type="qwen2"),
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [TILE_PX, TILE_PX],
            "attention_bias": True,
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessor(size={"height": TILE_PX, "width": TILE_PX}, min_patches=1, max_patches=4)
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=4, chat_template=tokenizer.chat_template
    )
    return InternVLForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """(model, processor): squares of one or four tiles of 56 x 56 pixels, sixteen tokens each."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = build_tokenizer(
        LLAVA, chat_template("<image>\n", role_end=" "), image_token="<image>", video_token="<video>"
    )
    pinpoints = [[TILE_PX * rows, TILE_PX * columns] for rows in (1, 2) for columns in (1, 2)]
    config = LlavaOnevisionConfig(
        text_config=text_config(tokenizer, model_type="qwen2"),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE_PX,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
    )
    images = LlavaOnevisionImageProcessor(
        size={"height": TILE_PX, "width": TILE_PX}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaOnevisionProcessor(
        images,
        tokenizer,
        LlavaOnevisionVideoProcessor(size={"height": TILE_PX, "width": TILE_PX}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "llava_onevision": llava_onevision,
}


def save_random_family(name: str, folder: Path) -> Path:
    """Write config, weights, tokenizer and processor to `folder`; the weights are random but always the same."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = FAMILIES[name]()
        tokenizer = processor.tokenizer
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        with torch.no_grad():
            output = model.lm_head.weight
            sayable = {tokenizer.eos_token_id, *tokenizer.encode("".join(map(chr, range(32, 127))))}
            silent = [token for token in range(len(output)) if token not in sayable]
            output[silent] = 0.0
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    if name == "llava_onevision":
        _name_as_published(folder / "model.safetensors")
    processor.save_pretrained(folder)
    return folder


def _name_as_published(weights: Path) -> None:
    """Name the vision tower's tensors as the published checkpoints do; Transformers reads both, vLLM only those."""
    from safetensors.torch import load_file, save_file

    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = {
        new + name[len(old) :] if name.startswith(old) else name: tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
