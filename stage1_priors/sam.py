"""Boxes -> soft masks by a Segment Anything model: SAM 2 (`Sam2Model`) or SAM (`SamModel`), through Transformers.

An image is encoded once, however many boxes it has: rows of an image are neighbours, several images are encoded
together, their boxes are decoded together, and the features of the last image are kept for a call that goes on where
this one ended. No other features outlive a call. Candidates (`candidates.py`), if asked for, come from the same
features, once an image. Out of memory, fewer images and boxes go together for the rest of the run.

Frames: a box comes in the normalised frame of the original image. SAM 2 stretches the image to its square; SAM scales
the longer side and fills the square from the top left. So the box in the model's pixels is the normalised box times
the size of the filled part, and the stored grid covers exactly the filled part of the mask logits.

Legend: N prompts or their masks, Q masks that may be kept, J masks per prompt (1 or 3), M side of the mask
logits, G side of the stored grid.
"""

import gc
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Sam2Model, Sam2Processor, SamModel, SamProcessor

from shared.errors import DataError
from shared.own_device import own_device
from shared.runlog import say
from stage1_priors.candidates import choose, prompt_boxes, prompt_points
from stage1_priors.config import ProposerConfig
from stage1_priors.proposals import NO_PRIOR, fill_small
from stage1_priors.proposers import Prompts, Proposals, ProposerFailed

CLASSES: dict[str, tuple[Any, Any]] = {"sam2": (Sam2Model, Sam2Processor), "sam": (SamModel, SamProcessor)}
"""Model and processor by `proposer.kind`."""


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """What the mask decoder needs of an image."""

    features: tuple[Tensor, ...]
    """float32 [1, C, h, w] each, finest first; one for SAM, three for SAM 2."""
    filled_hw: tuple[int, int]
    """Height and width of the part of the model's square that the image fills, px."""
    square_hw: tuple[int, int]
    """Size of the square, px."""


@dataclass(frozen=True, kw_only=True)
class KnownImage:
    """What is kept of an image."""

    encoded: EncodedImage
    """Its features."""
    candidates_KGG: np.ndarray
    """uint8 [num, side, side], its candidates, absent ones all zero."""


class SamProposer:
    """Soft masks of prompt boxes."""

    def __init__(self, config: ProposerConfig, folder: Path) -> None:
        """Load model and processor from local files only, onto the GPU if there is one.

        Raises:
            DataError: The folder's weights do not cover the model.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self._config = config
        self._device = own_device()
        model_class, processor_class = CLASSES[config.kind]
        self._processor: Any = processor_class.from_pretrained(folder, local_files_only=True)
        model, info = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := sorted(info["missing_keys"]):
            raise DataError(
                f"{folder}: the weights lack {len(missing)} tensors of {model_class.__name__}, first {missing[0]}"
            )
        self._model: Any = model.to(self._device).eval()
        # A stream of its own, so that kernels can run beside those of an engine on the same GPU.
        self._stream = torch.cuda.Stream() if self._device.type == "cuda" else None
        if self._stream is not None:
            torch.cuda.synchronize()
        self._batch_images, self._batch_boxes = config.batch_images, config.batch_boxes
        self._last: tuple[str, KnownImage] | None = None
        self._in_hand: Sequence[str] = ()

    def propose(self, prompts: Prompts) -> Proposals:
        """Soft masks and expected IoU of all rows; rows without a box or an image get `NO_PRIOR` and NaN.

        Raises:
            ProposerFailed: The model failed, or the memory does not do for one image and one box; names the images.
        """
        while True:
            try:
                return self._propose(prompts)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise ProposerFailed(f"SAM failed on {self._told(error)}") from error
                told = self._told(error)
            self._take_less(told)  # here nothing refers any more to the tensors of the call that failed

    def _told(self, error: Exception) -> str:
        first_line = (str(error).splitlines() or [""])[0]
        return (
            f"{', '.join(self._in_hand)}: {type(error).__name__}: {first_line}. Finished shards are kept and the "
            "same command goes on"
        )

    def _take_less(self, told: str) -> None:
        """Halve what goes together, for the rest of the run."""
        if self._batch_images == self._batch_boxes == 1:
            raise ProposerFailed(
                f"SAM has too little memory, at proposer.batch_images=1 and proposer.batch_boxes=1, for {told}: on a "
                "GPU lower engine.gpu_memory"
            )
        self._batch_images, self._batch_boxes = (
            max(1, self._batch_images // 2),
            max(1, self._batch_boxes // 2),
        )
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        say(
            f"SAM is out of memory: going on with proposer.batch_images={self._batch_images} and "
            f"proposer.batch_boxes={self._batch_boxes}",
            quiet=False,
        )

    def _propose(self, prompts: Prompts) -> Proposals:
        num, grid = len(prompts.box_norm_B4), self._config.grid
        if not prompts.continues:
            self._last = None
        asked = self._config.candidates
        map_BGG = np.full((num, grid, grid), NO_PRIOR, np.uint8)
        iou_B = np.full(num, np.nan, np.float32)
        candidates_BKGG = np.zeros((num, asked.num, asked.side, asked.side), np.uint8)
        has_box_B = np.isfinite(prompts.box_norm_B4).all(axis=1)
        rows_of: dict[str, list[int]] = {}
        for row in np.flatnonzero(has_box_B | (asked.num > 0)):
            if prompts.images_B[row] is not None:
                rows_of.setdefault(prompts.names_B[row], []).append(int(row))
        images = {name: prompts.images_B[rows[0]] for name, rows in rows_of.items()}
        names = list(rows_of)
        with torch.inference_mode(), self._on_own_stream():
            for start in range(0, len(names), self._batch_images):
                batch = self._in_hand = names[start : start + self._batch_images]
                known = self._look_or_recall({name: images[name] for name in batch})
                for name in batch:
                    candidates_BKGG[rows_of[name]] = known[name].candidates_KGG
                boxed = [
                    (row, known[name].encoded) for name in batch for row in rows_of[name] if has_box_B[row]
                ]
                for first in range(0, len(boxed), self._batch_boxes):
                    rows, encoded = zip(*boxed[first : first + self._batch_boxes], strict=True)
                    prob_NGG, iou_N = self._decode(encoded, prompts.box_norm_B4[list(rows)])
                    map_BGG[list(rows)] = np.rint(prob_NGG * 255).astype(np.uint8)
                    iou_B[list(rows)] = iou_N
                self._last = (batch[-1], known[batch[-1]])
        return Proposals(map_BGG=map_BGG, iou_B=iou_B, candidates_BMGG=candidates_BKGG if asked.num else None)

    def _on_own_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _look_or_recall(self, images: dict[str, Any]) -> dict[str, KnownImage]:
        """What is known of some images by name; only those that are not at hand are looked at."""
        found = {self._last[0]: self._last[1]} if self._last is not None and self._last[0] in images else {}
        fresh = [name for name in images if name not in found]
        if fresh:
            for name, encoded in zip(fresh, self.encode([images[name] for name in fresh]), strict=True):
                found[name] = KnownImage(encoded=encoded, candidates_KGG=self._candidates(encoded))
        return found

    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """Encode images together.

        Args:
            images: Original images, RGB, any sizes.
        """
        inputs = self._processor(images=list(images), return_tensors="pt")
        pixel_B3SS = inputs["pixel_values"].to(self._device)
        square_hw = (int(pixel_B3SS.shape[-2]), int(pixel_B3SS.shape[-1]))
        filled = inputs.get("reshaped_input_sizes")  # SAM alone: SAM 2 fills its square
        filled_B2 = [square_hw] * len(images) if filled is None else [(int(h), int(w)) for h, w in filled]
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._config.dtype == "bfloat16", cache_enabled=False
        ):
            levels = self._model.get_image_embeddings(pixel_B3SS)
        levels = list(levels) if isinstance(levels, list | tuple) else [levels]
        return [
            EncodedImage(
                features=tuple(level[index : index + 1].float() for level in levels),
                filled_hw=filled_B2[index],
                square_hw=square_hw,
            )
            for index in range(len(images))
        ]

    def _decode(
        self, images: Sequence[EncodedImage], box_norm_N4: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Soft masks float32 [N, G, G] and expected IoU float32 [N] of boxes, each with its image.

        Where the mask has samples of one half or more but no cell has, those samples fill the cell that holds most of
        them; what is in doubt elsewhere stays so, and an empty mask stays empty.
        """
        logit_NJMM, iou_NJ = self._ask(images, box_norm_N4, self._config.multimask)
        best_N = iou_NJ.argmax(dim=1)
        row_N = torch.arange(len(best_N), device=self._device)
        logit_NMM = logit_NJMM[row_N, best_N]
        prob_NGG = self._on_grid(images, logit_NMM, self._config.grid).cpu().numpy()
        lost = np.flatnonzero(prob_NGG.max(axis=(1, 2)) < 0.5)
        if len(lost):
            inside_NMM = logit_NMM[lost].where(logit_NMM[lost] >= 0, -torch.inf)
            inside_NGG = (
                self._on_grid([images[row] for row in lost], inside_NMM, self._config.grid).cpu().numpy()
            )
            prob_NGG[lost] = np.maximum(prob_NGG[lost], fill_small(inside_NGG, np.ones(len(lost), bool)))
        return prob_NGG, iou_NJ[row_N, best_N].clamp(0, 1).cpu().numpy()

    def _candidates(self, image: EncodedImage) -> np.ndarray:
        """Candidates of an image: uint8 [num, side, side], best first, absent ones all zero."""
        asked = self._config.candidates
        found_KGG = np.zeros((asked.num, asked.side, asked.side), np.uint8)
        if not asked.num:
            return found_KGG
        points = asked.prompts == "points"
        prompt_PX = prompt_points(asked) if points else prompt_boxes(asked)
        parts = []
        for first in range(0, len(prompt_PX), self._batch_boxes):
            prompt_NX = prompt_PX[first : first + self._batch_boxes]
            logit_NJMM, iou_NJ = self._ask([image] * len(prompt_NX), prompt_NX, points)
            logit_NMM, iou_N = logit_NJMM.flatten(0, 1), iou_NJ.flatten()
            stability_N = stability(logit_NMM, asked.stability_offset)
            good_N = (iou_N >= asked.min_iou) & (stability_N >= asked.min_stability)
            logit_NMM = logit_NMM[good_N]
            prob_NGG = self._on_grid([image] * len(logit_NMM), logit_NMM, asked.side)
            soft_NGG = (prob_NGG * 255).round().to(torch.uint8)
            parts.append((soft_NGG.cpu().numpy(), iou_N[good_N].cpu().numpy()))
        soft_QGG, iou_Q = (np.concatenate(column) for column in zip(*parts, strict=True))
        kept = choose(soft_QGG, iou_Q, asked)
        found_KGG[: len(kept)] = soft_QGG[kept]
        return found_KGG

    def _ask(
        self, images: Sequence[EncodedImage], prompt_NX: np.ndarray, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Mask logits float32 [N, J, M, M] and expected IoU float32 [N, J] of prompts.

        Each prompt is a batch entry of its own, with the features of its image, so that images with different numbers
        of prompts go through the decoder together.

        Args:
            images: The image of each prompt.
            prompt_NX: Points [N, 2] or boxes [N, 4] in the normalised frame.
            multimask: Three masks of each prompt instead of one.
        """
        filled_N2 = np.array([image.filled_hw[::-1] for image in images], np.float64)
        scale_NX = np.tile(filled_N2, prompt_NX.shape[1] // 2)
        prompt_N1X = torch.tensor(prompt_NX * scale_NX, dtype=torch.float32, device=self._device)[:, None]
        if prompt_NX.shape[1] == 4:
            asked = {"input_boxes": prompt_N1X}
        else:
            inside_N11 = torch.ones(len(prompt_NX), 1, 1, dtype=torch.int64, device=self._device)
            asked = {"input_points": prompt_N1X[:, :, None], "input_labels": inside_N11}
        levels = features_of(images)
        output = self._model(
            image_embeddings=levels if self._config.kind == "sam2" else levels[0],
            multimask_output=multimask,
            **asked,
        )
        return output.pred_masks[:, 0].float(), output.iou_scores[:, 0].float()

    def _on_grid(self, images: Sequence[EncodedImage], logit_NMM: Tensor, grid: int) -> Tensor:
        """Probabilities over the whole image of each mask, float32 [N, G, G]."""
        if not len(logit_NMM):
            return logit_NMM.new_zeros(0, grid, grid)
        down_NGM, across_NGM = (
            torch.stack(
                [resampling(size, image.filled_hw[axis] / image.square_hw[axis], grid) for image in images]
            ).to(self._device)
            for axis, size in enumerate(logit_NMM.shape[1:])
        )
        return (down_NGM @ logit_NMM.sigmoid() @ across_NGM.mT).clamp(0, 1)

    def close(self) -> None:
        """Free the model."""
        self._model = self._processor = self._last = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory does not do; torch has a class of its own for it on GPUs alone."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )


def features_of(images: Sequence[EncodedImage]) -> list[Tensor]:
    """Features of the image of each of N prompts, float32 [N, C, h, w] each; those of one image alone are no copies."""
    runs = [[*same] for _, same in groupby(images, key=id)]
    parts = [[level.expand(len(run), -1, -1, -1) for level in run[0].features] for run in runs]
    return parts[0] if len(parts) == 1 else [torch.cat(level) for level in zip(*parts, strict=True)]


def stability(logit_NMM: Tensor, offset: float) -> Tensor:
    """IoU of each mask with the threshold raised and lowered by `offset`, float32 [N]; 0 for an empty mask."""
    inner_N = (logit_NMM > offset).flatten(1).sum(1)
    outer_N = (logit_NMM > -offset).flatten(1).sum(1)
    return inner_N / outer_N.clamp(min=1)


@lru_cache(maxsize=256)
def resampling(size: int, share: float, grid: int) -> Tensor:
    """Weights that resample the first `share` of an axis to `grid` cells: float32 [G, size], rows sum to 1.

    Bilinear with the pixel centres at (i + 0.5) / n on both sides; when shrinking, the triangle is as wide as a
    grid cell, so that no sample is skipped.

    Args:
        size: Samples along the axis.
        share: Part of the axis, from its beginning, that the grid covers; in (0, 1].
        grid: Cells G.
    """
    extent = share * size
    scale = max(extent / grid, 1.0)
    centre_G1 = (torch.arange(grid, dtype=torch.float64)[:, None] + 0.5) * extent / grid
    sample_S = torch.arange(size, dtype=torch.float64) + 0.5
    weight_GS = (1 - (centre_G1 - sample_S).abs() / scale).clamp(min=0)
    weight_GS *= sample_S - 0.5 < extent
    return (weight_GS / weight_GS.sum(1, keepdim=True)).float()
