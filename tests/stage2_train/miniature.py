"""A run small enough for tests: drawn scenes, a made-up prior store, and a network of a few thousand parameters."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shared.config import DataConfig
from shared.image_pack import digest_of
from shared.masks import resize_mask_nearest
from shared.refer import ReferDataset, load_refer
from shared.seeding import rng
from shared.store.schema import encode_text_rows, image_hash_fields, prior_fields
from shared.store.writer import create_store, write_shard
from shared.synth.expressions import VOCABULARY
from shared.synth.refshapes import write_refshapes
from shared.types import STATUS_CODES, AnswerStatus, Sample
from stage2_train.alarm import AlarmConfig
from stage2_train.batch import Batch
from stage2_train.config import AugsegConfig, L2lConfig, OmniResConfig, RuntimeConfig, TrainConfig
from stage2_train.ema import EmaConfig
from stage2_train.inputs import batch_plan, open_inputs
from stage2_train.method_facts import METHOD_FACTS
from stage2_train.optim import OptimConfig
from stage2_train.segmentor import ReferringSegmentor, build_segmentor
from stage2_train.segmentor_config import SegmentorConfig, SesmConfig, TextConfig, VisionConfig
from stage2_train.text import Tokenizer
from stage2_train.text_augment import StrongTextConfig

GRID = 16
SHARD_ROWS = 512
OWN_BYTES = "own"
NO_BOX_EVERY = 7
"""Every so manieth row of the store has no proposal."""


def write_data(root: Path, images: int = 16) -> ReferDataset:
    """RefShapes of a few scenes."""
    write_refshapes(root, "refshapes", num_train_images=images, progress=False)
    return load_refer(root, "refshapes", "unc")


def write_tokenizer(folder: Path) -> Path:
    """A WordPiece vocabulary that holds every word of the drawn scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def write_priors(
    path: Path,
    dataset: ReferDataset,
    *,
    fingerprint: str = "",
    data: dict | None = None,
    splits: tuple = ("train",),
    model: str = "",
    limit: int | None = None,
    images: str = "",
) -> Path:
    """A complete store whose proposals are noisy versions of the masks; some rows have no box.

    Stores of the same named `model` were made alike, nothing is known of one without. One with `images` knows the bytes
    of its images: those that they have if it is `OWN_BYTES`, else made-up ones, which are others under another name.
    """
    samples = [sample for split in splits for sample in dataset.samples(split)][:limit]
    num, fields = len(samples), (*prior_fields(GRID), *(image_hash_fields() if images else ()))
    made_for = {
        "dataset": dataset.dataset, "split_by": dataset.split_by, "fingerprint": dataset.fingerprint(), **(data or {})
    }  # fmt: skip
    fields_hashed = {"model": {"files": model}, "data": {"images": str(splits)}, "splits": list(splits)}
    fields_hashed |= {} if limit is None else {"limit": limit}
    static = {
        "sample_id": encode_text_rows([s.sample_id for s in samples], 96, strict=True),
        "expression": encode_text_rows([s.expression for s in samples], 256),
        "image_id": np.array([s.image_id for s in samples], np.int64),
        "split": np.array([splits.index(s.split) for s in samples], np.uint8),
        "image_hw": np.array([(s.height, s.width) for s in samples], np.int32),
    }
    if images:
        if images == OWN_BYTES:
            hashes = [list(_own_hash(dataset, s)) for s in samples]
        else:
            hashes = [rng("bytes", images, s.image_id).integers(256, size=16).tolist() for s in samples]
        static["image_hash"] = np.array(hashes, np.uint8)
    create_store(
        path,
        num_rows=num,
        fields=fields,
        attrs={
            "fingerprint": fingerprint or "f" * 16,
            "fingerprint_fields": fields_hashed if model else {},
            "data": made_for,
            "splits": list(splits),
            "grid": GRID,
            **({} if limit is None else {"limit": limit}),
        },
        static=static,
    )
    proposal = np.zeros((num, GRID, GRID), np.uint8)
    status = np.full(num, STATUS_CODES[AnswerStatus.OK], np.uint8)
    for row, sample in enumerate(samples):
        if row % NO_BOX_EVERY == NO_BOX_EVERY - 1:
            status[row] = STATUS_CODES[AnswerStatus.NO_BOX]
            continue
        mask = np.zeros((GRID, GRID), dtype=bool)
        mask[4:12, 4:12] = True  # of what nobody has drawn, a guess
        if dataset.has_mask(sample):
            mask = resize_mask_nearest(dataset.mask(sample), (GRID, GRID))
        noise = rng("prior", sample.sample_id).normal(0, 30, mask.shape)
        proposal[row] = np.clip(np.where(mask, 210, 40) + noise, 0, 255)
    confidence = np.array([rng("confidence", sample.sample_id).random() for sample in samples], np.float32)
    confidence[status == STATUS_CODES[AnswerStatus.NO_BOX]] = np.nan
    arrays = {
        spec.name: np.zeros((num, *spec.row_shape), spec.numpy_dtype)
        for spec in fields
        if spec.name not in static
    } | {"proposal": proposal, "status": status, "confidence": confidence}
    for shard in range(-(-num // SHARD_ROWS)):
        part = slice(shard * SHARD_ROWS, (shard + 1) * SHARD_ROWS)
        write_shard(path, shard, {name: values[part] for name, values in arrays.items()}, {})
    return path


def _own_hash(dataset: ReferDataset, sample: Sample) -> bytes:
    """Of an image as it lies there; zeros if it is gone."""
    path = dataset.image_identity(sample.file_name)
    return digest_of(path.read_bytes()) if isinstance(path, Path) else bytes(16)


def segmentor_config(
    tokenizer: Path, *, sesm: bool = True, dropout: float = 0.1, norm: str = "group"
) -> SegmentorConfig:
    """A network of about 100,000 parameters for 32 x 32 images."""
    return SegmentorConfig(
        vision=VisionConfig(
            image_size=32, embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2, drop_path=dropout
        ),
        text=TextConfig(
            tokenizer=str(tokenizer), vocab_size=256, hidden=16, layers=1, heads=2, mlp=16, positions=32,
            dropout=dropout,
        ),
        decoder_width=8,
        decoder_norm=norm,  # type: ignore[arg-type]
        sesm=SesmConfig() if sesm else None,
    )  # fmt: skip


def mini_config(root: Path, **changes: object) -> TrainConfig:
    """A short run on the data below `root` (see `write_all`)."""
    config = TrainConfig(
        data=DataConfig(root=str(root / "data"), dataset="refshapes"),
        cache_root=str(root / "stores"),
        fraction=0.25,
        method="l2l",
        segmentor=segmentor_config(root / "tokenizer"),
        steps=6,
        batch_labelled=4,
        batch_unlabelled=4,
        eval_every=0,
        val_limit=6,
        optim=OptimConfig(name="adamw", lr=2e-3),
        text=StrongTextConfig(table="shapes", candidates=3, similarity=0.5),
        l2l=L2lConfig(band_px=0),
        alarm=AlarmConfig(patience=0),
        runtime=RuntimeConfig(checkpoint_every=2, log_every=1, prefetch=1),
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def plain_config(root: Path, method: str, **changes: object) -> TrainConfig:
    """`mini_config` for another method: no structural enhancement, and the teacher or branch the method needs.

    Thresholds are low enough for an untrained network to teach itself something.
    """
    config, facts = mini_config(root), METHOD_FACTS[method]
    needs: dict[str, object] = {
        "segmentor": dataclasses.replace(config.segmentor, sesm=None, second_branch=facts.needs_branch),
        "l2l": L2lConfig(use_spm=False, use_sesm=False, use_rple=False, band_px=0),
        "augseg": AugsegConfig(threshold=0.5),
        "omni_res": OmniResConfig(foreground=0.5, background=0.5, min_fill=0.0),
    }
    if facts.needs_teacher:
        needs["ema"] = EmaConfig(decay=0.9, teacher=True)
    return dataclasses.replace(config, method=method, **{**needs, **changes})  # type: ignore[arg-type]


def write_all(root: Path, images: int = 16) -> Path:
    """Data, tokenizer and one complete store below `root`."""
    dataset = write_data(root / "data", images)
    write_tokenizer(root / "tokenizer")
    write_priors(root / "stores" / "refshapes.test.zarr", dataset)
    return root


def random_image(height: int = 20, width: int = 24, seed: int = 0) -> Image.Image:
    """Noise."""
    return Image.fromarray(rng("image", seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def batch_of(config: TrainConfig, key: int = 0) -> Batch:
    """One batch, as a single process reads it."""
    plan = dataclasses.replace(batch_plan(config), cache_mib=16)
    return open_inputs(config).source(plan, Tokenizer(config.segmentor))(key)


def model_of(config: TrainConfig) -> ReferringSegmentor:
    """The network with seeded weights, in training mode."""
    torch.manual_seed(0)
    return build_segmentor(config.segmentor).train()
