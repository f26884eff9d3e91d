"""The referring segmentor: composition root of the two towers, word attention, structural enhancement and decoder.

Axes: B image-expression pairs, F of them see a field, T tokens, H x W input pixels, N tokens and C channels of a stage.

Stage j, with V_j the output of the vision tower's blocks:

    F_j = PixelWordAttention(V_j, S)            what the decoder reads (after a norm)
    E_j = V_j + gate(F_j) * F_j                 what goes on to stage j + 1
    R_j = Sesm(E_j, S, field)                   added to both, only where a sample sees a field
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.constants import REPOCARD_NAME
from torch import Tensor, nn

from shared.config import config_from_dict, config_to_dict
from shared.errors import DataError
from shared.json_files import read_json, write_json
from shared.store.publish import publishing
from stage2_train.backbones import build_text, build_vision
from stage2_train.branch import BranchMaps, channel_map
from stage2_train.card_template import CARD_TEMPLATE, card_data
from stage2_train.decoder import TopDownDecoder
from stage2_train.segmentor_config import (
    EMBEDDED,
    EMBEDDED_FOLDER,
    NUM_STAGES,
    PARTS,
    SegmentorConfig,
    without_pretrained,
)
from stage2_train.segmentor_weights import load_parts, load_pretrained, require_weights, save_segmentor
from stage2_train.sesm import Sesm
from stage2_train.text import TOKENIZER_FILES, mean_pool, tokenizer_folder
from stage2_train.word_attention import WordFusion

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

BESIDE = "."
"""Tokenizer folder in an exported config: the model's own."""


@dataclass(frozen=True, kw_only=True)
class StageMaps:
    """Maps [B, C_j, H_j, W_j] of the four stages, stage 1 first."""

    visual: list[Tensor]
    """V_j, before language enters at this stage; empty unless asked for (a pass without gradient need not hold it)."""
    read: list[Tensor]
    """What the decoder reads."""


class ReferringSegmentor(nn.Module, PyTorchModelHubMixin, model_card_template=CARD_TEMPLATE, **card_data()):
    """Image and expression to a two-class logit map.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are huggingface_hub's; a model folder holds the weights
    (safetensors), `config.json`, the tokenizer and a card.
    """

    card: ModelCard | None = None
    """The card of the folder it was loaded from; kept when it is saved elsewhere or pushed."""

    def __init__(self, config: SegmentorConfig) -> None:
        """Build the modules; `build_segmentor` also loads `config.weights`."""
        super().__init__()
        self.config = config
        dims, text_dim = config.vision.dims, config.text.hidden
        self.vision = build_vision(config.vision)
        self.text = build_text(config.text)
        self.fusion = nn.ModuleList(
            WordFusion(dim, text_dim, config.fusion_dropout, config.fusion_norm) for dim in dims
        )
        self.decoder = TopDownDecoder(dims, config.decoder_width, config.decoder_norm, config.decoder_upscale)
        # What only some methods have comes last: of one seed, what all have then starts from the same random weights.
        self.match: nn.Module | None = None  # a second network has one
        self.branch: ReferringSegmentor | None = None
        if config.second_branch:
            self.branch = ReferringSegmentor(dataclasses.replace(config, second_branch=False, sesm=None))
            self.branch.match = channel_map(config.decoder_width, config.decoder_norm)
        self.sesm: nn.ModuleList | None = None
        if config.sesm is not None:
            self.sesm = nn.ModuleList(
                Sesm(dim, text_dim, operator, config.sesm)
                for dim, operator in zip(dims, config.sesm.operators, strict=True)
            )

    def forward(
        self,
        image_B3HW: Tensor,
        token_ids_BT: Tensor,
        token_mask_BT: Tensor,
        field_B1HW: Tensor | None = None,
        field_rows_F: Tensor | None = None,
    ) -> Tensor:
        """Segment.

        Args:
            image_B3HW: Normalised images. There may be fewer images than sentences: with B / r images, rows
                i r .. i r + r - 1 of the text belong to image i, and what precedes the first word is computed once.
            token_ids_BT: int64.
            token_mask_BT: bool, True at tokens of the sentence.
            field_B1HW: Prior probability map in [0, 1], any resolution, or None.
            field_rows_F: int64, samples that see the field, each once; None means all. A sample that sees none gets
                exactly the pass without a field. (Rows, not flags: finding them waits for the device.)

        Returns:
            Logits [B, 2, H, W]; class 1 is the object referred to.

        Raises:
            ValueError: A field for a network without structural enhancement, or flags instead of rows.
        """
        maps = self.features(image_B3HW, token_ids_BT, token_mask_BT, field_B1HW, field_rows_F)
        return _at_input_size(self.decoder(maps.read), image_B3HW)

    def both_branches(self, image_B3HW: Tensor, token_ids_BT: Tensor, token_mask_BT: Tensor) -> BranchMaps:
        """Logits and hidden maps of both networks; arguments as `forward`.

        The first branch is the network as it is used and evaluated.

        Raises:
            DataError: A network without a second branch.
        """
        if self.branch is None:
            raise DataError(
                "the method trains two networks and segmentor.second_branch is false: set needs_branch=True for it in "
                "METHOD_FACTS of stage2_train/method_facts.py, and the field"
            )
        first_BCHW, first_B2HW = self._deep_and_logit(image_B3HW, token_ids_BT, token_mask_BT)
        second_BCHW, second_B2HW = self.branch._deep_and_logit(image_B3HW, token_ids_BT, token_mask_BT)
        return BranchMaps(
            first_logit_B2HW=first_B2HW,
            second_logit_B2HW=second_B2HW,
            first_BCHW=first_BCHW,
            second_BCHW=second_BCHW,
        )

    def _deep_and_logit(
        self, image_B3HW: Tensor, token_ids_BT: Tensor, token_mask_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the decoder's last two convolutions read of stages 2 to 4, and the logits."""
        maps = self.features(image_B3HW, token_ids_BT, token_mask_BT)
        deep_BCHW = self.decoder.deep(maps.read)
        if self.match is not None:
            deep_BCHW = self.match(deep_BCHW)
        logit_B2HW = self.decoder.logit(self.decoder.finish(deep_BCHW, maps.read))
        return deep_BCHW, _at_input_size(logit_B2HW, image_B3HW)

    def features(
        self,
        image_B3HW: Tensor,
        token_ids_BT: Tensor,
        token_mask_BT: Tensor,
        field_B1HW: Tensor | None = None,
        field_rows_F: Tensor | None = None,
        *,
        with_visual: bool = False,
    ) -> StageMaps:
        """The maps of the four stages; arguments as `forward`, and whether `StageMaps.visual` is wanted."""
        rows_F = field_rows_F
        if field_B1HW is not None:
            if self.sesm is None:
                raise ValueError("a field was given to a segmentor built without sesm")
            if rows_F is None:
                rows_F = torch.arange(len(field_B1HW), device=field_B1HW.device)
            if rows_F.dtype == torch.bool:
                raise ValueError(
                    "field_rows_F names the samples that see the field, by number: flags.nonzero()[:, 0]"
                )
        text_BTL = self.text(token_ids_BT, token_mask_BT)
        tokens_BNC, grid_hw = self.vision.embed(image_B3HW)
        maps = StageMaps(visual=[], read=[])
        for stage in range(NUM_STAGES):
            visual_BNC = self.vision.blocks(stage, tokens_BNC, grid_hw)
            if len(visual_BNC) != len(text_BTL):
                visual_BNC = visual_BNC.repeat_interleave(len(text_BTL) // len(visual_BNC), dim=0)
            if with_visual:
                maps.visual.append(visual_BNC.transpose(1, 2).unflatten(2, grid_hw))
            fused_BNC, visual_BNC = self.fusion[stage](visual_BNC, text_BTL, token_mask_BT)
            if self.sesm is not None and field_B1HW is not None and rows_F is not None and len(rows_F):
                residual_FNC = self.sesm[stage](
                    visual_BNC[rows_F], text_BTL[rows_F], token_mask_BT[rows_F], field_B1HW[rows_F], grid_hw
                )
                visual_BNC = visual_BNC.index_add(0, rows_F, residual_FNC.to(visual_BNC.dtype))
                fused_BNC = fused_BNC.index_add(0, rows_F, residual_FNC.to(fused_BNC.dtype))
            read_BNC = self.vision.norms[stage](fused_BNC)
            maps.read.append(read_BNC.transpose(1, 2).unflatten(2, grid_hw))
            tokens_BNC, grid_hw = self.vision.merge(stage, visual_BNC, grid_hw)
        return maps

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write tokenizer, weights, and the config last (it says the rest is whole)."""
        folder = Path(save_directory)
        source = tokenizer_folder(self.config.text)
        for name in TOKENIZER_FILES:
            if (source / name).is_file() and source.resolve() != folder.resolve():
                with publishing(folder / name) as partial:
                    shutil.copyfile(source / name, partial)
        with publishing(folder / WEIGHTS_NAME) as partial:
            save_segmentor(self, partial)
        config = without_pretrained(self.config)
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer=BESIDE))
        write_json(folder / CONFIG_NAME, config_to_dict(config))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "ReferringSegmentor":
        """A finished network in evaluation mode on the CPU; `stage2_train.text.Tokenizer(model.config)` fits it.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` wrote, a run's folder, which holds one, or
                the id of a Hugging Face repository with its files.
            **options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`, for a repository.

        Raises:
            DataError: No such folder or repository, or files that do not fit together.
        """
        name = pretrained_model_name_or_path
        folder = Path(name) if Path(name).is_dir() else _download(str(name), **options)
        if not (folder / WEIGHTS_NAME).is_file() and (folder / "model" / WEIGHTS_NAME).is_file():
            folder = folder / "model"
        return super().from_pretrained(folder, config=_read_config(folder))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "ReferringSegmentor":
        """The network of a local folder; of `options` only `config` matters, the rest concern a download."""
        folder = Path(model_id)
        model = cls(options["config"])
        parts = {key.partition(".")[0] for key in model.state_dict()}
        load_pretrained(model, folder / WEIGHTS_NAME, tuple(part for part in PARTS if part in parts))
        if (folder / REPOCARD_NAME).is_file():
            model.card = ModelCard.load(folder / REPOCARD_NAME)
        return model.eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card it came with, or one that says that nothing is known of its training."""
        return self.card or super().generate_model_card(*args, **kwargs)

    @torch.no_grad()
    def text_embedding(self, token_ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Mean word feature of each sentence [B, L], detached: for comparing sentences, not for training."""
        return mean_pool(self.text(token_ids_BT, token_mask_BT), token_mask_BT)


def _at_input_size(logit_B2hw: Tensor, image_B3HW: Tensor) -> Tensor:
    return F.interpolate(logit_B2hw, size=image_B3HW.shape[-2:], mode="bilinear", align_corners=True)


def build_segmentor(config: SegmentorConfig) -> ReferringSegmentor:
    """Build a segmentor and load `config.weights` if there are any.

    Raises:
        DataError: Weights that are missing or do not fit.
    """
    model = ReferringSegmentor(config)
    if config.weights is not None:
        path = _weights_path(config.weights)
        require_weights(model, path, config.weight_parts, may_leave_out=True)
        load_parts(model, path, config.weight_parts)
        if model.branch is not None and "branch" not in config.weight_parts:
            load_parts(model.branch, path, config.weight_parts)
    return model


def require_fitting_weights(config: SegmentorConfig) -> None:
    """Refuse `config.weights` that do not fit the network, by names and shapes alone: no weights are read.

    Raises:
        DataError: As `build_segmentor`.
    """
    if config.weights is not None:
        with torch.device("meta"):
            model = ReferringSegmentor(without_pretrained(config))
        require_weights(model, _weights_path(config.weights), config.weight_parts, may_leave_out=True)


def _weights_path(weights: str) -> Path:
    return EMBEDDED_FOLDER / WEIGHTS_NAME if weights == EMBEDDED else Path(weights)


def _download(name: str, **options: Any) -> Path:
    """A repository's files in the local cache of huggingface_hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **options))
    except (OSError, ValueError) as error:  # no such repository, no network, not an id
        raise DataError(f"{name}: neither a model folder nor a repository that can be reached") from error


def _read_config(folder: Path) -> SegmentorConfig:
    """The config of a model folder, its tokenizer found."""
    path = folder / CONFIG_NAME
    config = without_pretrained(config_from_dict(SegmentorConfig, read_json(path), str(path)))
    if config.text.tokenizer == BESIDE:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer=str(folder)))
    return config
