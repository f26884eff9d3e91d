"""Priors the way research code makes them: one pair at a time, `generate`, then SAM 2 on the same image once more.

Uses Transformers alone and nothing of stage 1, so that it is a peer and not a slow copy.
"""

import re
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Sam2Model, Sam2Processor

QUESTION = "Output the bounding box of the {} in the image."


class OneAtATime:
    """A multimodal model and SAM 2, asked pair by pair."""

    def __init__(self, mllm_folder: Path, sam_folder: Path) -> None:
        """Load both models."""
        self.processor = AutoProcessor.from_pretrained(mllm_folder, local_files_only=True)
        self.mllm = AutoModelForImageTextToText.from_pretrained(mllm_folder, dtype=torch.float32).eval()
        self.sam_processor = Sam2Processor.from_pretrained(sam_folder, local_files_only=True)
        self.sam = Sam2Model.from_pretrained(sam_folder, local_files_only=True).eval()

    @torch.inference_mode()
    def prior(self, file: Path, expression: str, max_tokens: int) -> np.ndarray | None:
        """Probabilities float32 [H, W] of one pair; None if the answer holds no box."""
        image = Image.open(file).convert("RGB")
        content = [{"type": "image"}, {"type": "text", "text": QUESTION.format(expression)}]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
            {"role": "user", "content": content},
        ]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(text=[prompt], images=[image], return_tensors="pt")
        tokens = self.mllm.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        answer = self.processor.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )[0]
        found = re.search(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]", answer)
        if found is None:
            return None
        height, width = (inputs["image_grid_thw"][0, 1:] * 14).tolist()
        scale = np.array([image.width / width, image.height / height] * 2)
        box = (np.array([int(number) for number in found.groups()]) * scale).tolist()
        prompted = self.sam_processor(images=image, input_boxes=[[box]], return_tensors="pt")
        output = self.sam(**prompted, multimask_output=False)
        logits = self.sam_processor.post_process_masks(
            output.pred_masks, prompted["original_sizes"], binarize=False
        )
        return logits[0][0, 0].sigmoid().numpy()


def seconds_per_pair(
    pairs: list[tuple[Path, str]], mllm_folder: Path, sam_folder: Path, max_tokens: int, out: Path
) -> float:
    """Mean seconds a pair, models loaded and warm; each mask is saved to a file of its own."""
    loop = OneAtATime(mllm_folder, sam_folder)
    for file, expression in pairs[:2]:
        loop.prior(file, expression, max_tokens)
    start = time.perf_counter()
    for number, (file, expression) in enumerate(pairs):
        mask = loop.prior(file, expression, max_tokens)
        if mask is not None:
            np.save(out / f"{number}.npy", mask)
    return (time.perf_counter() - start) / len(pairs)
