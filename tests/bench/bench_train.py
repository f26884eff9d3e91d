"""How fast stage 2 trains, as ratios taken within one run.

    python tests/bench/bench_train.py [--scale embedded|paper] [--batch 16] [--rounds 7] [--steps 3] [--compile]
                                      [--part methods|lavt]

- step time of l2l over fixmatch, same network, data and batch; the same in multiplications, counted over real steps,
  and at the size of the recipe `paper`, put together from the passes of one image;
- time in policy and reward as a share of an l2l step;
- images/s of a supervised step over a plain re-statement of LAVT's published step: explicit attention, 1x1 convolutions
  and instance norms on transposed maps, the loss read twice a step. Once with its garbage collection and cache
  emptying after each step, once without, and once without and with window masks that leave no denormal weights, as
  ours (what is slow about those is a CPU's). All have AdamW, the same network and, unless `--precision bf16`, float32;
- on a GPU: peak memory, and with `--precision bf16` the share of the device's operations that were put to use;
- what the loader can deliver over what l2l consumes, and the share of a real run's time spent waiting for it.

Contenders take turns, `--steps` steps a turn; the table has the median of the paired ratios. `paper` is Swin-B with
BERT-base at 480 x 480 with random weights; on a CPU give it a batch of 1 and an hour. With `--compile` our steps, those
of the methods and the one beside LAVT's, go through `torch.compile`, LAVT's stays as published.
"""

import argparse
import dataclasses
import functools
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from figures import Figure, figure, print_figures
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, SwinConfig, SwinModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import stage2_train.methods.l2l as l2l_module  # noqa: E402
from shared.config import DataConfig  # noqa: E402
from stage2_train.backbones.base import harden_window_masks  # noqa: E402
from stage2_train.backbones.images import normalise_image  # noqa: E402
from stage2_train.batch import Batch  # noqa: E402
from stage2_train.batch_source import BatchSource  # noqa: E402
from stage2_train.config import TrainConfig  # noqa: E402
from stage2_train.inputs import batch_plan, open_inputs  # noqa: E402
from stage2_train.loader import iterate  # noqa: E402
from stage2_train.losses import CLASS_WEIGHTS  # noqa: E402
from stage2_train.methods import METHODS  # noqa: E402
from stage2_train.networks import Networks  # noqa: E402
from stage2_train.optim import OptimConfig, build_optimizer  # noqa: E402
from stage2_train.recipes import RECIPES  # noqa: E402
from stage2_train.segmentor import build_segmentor  # noqa: E402
from stage2_train.segmentor_config import without_pretrained  # noqa: E402
from stage2_train.step import train_step  # noqa: E402
from stage2_train.text import Tokenizer  # noqa: E402
from tests.stage2_train.lavt_reference import Decoder, Fusion  # noqa: E402
from tests.stage2_train.miniature import write_all  # noqa: E402

IMAGES = 96
"""Scenes drawn to read from."""

READ = 8
"""Batches held in memory, so that the loader does not enter step times."""

BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 operations/s that the makers state for a device (SXM), by a part of its name."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settled() -> float:
    """The time once the device has nothing left to do."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def configured(recipe: str, root: Path, arguments: argparse.Namespace) -> TrainConfig:
    """A recipe on the drawn scenes, with weights that start at random."""
    config = RECIPES[recipe]()
    tokenizer = config.segmentor.text.tokenizer if "embedded" in recipe else str(root / "tokenizer")
    bare = without_pretrained(config.segmentor)
    text = dataclasses.replace(bare.text, tokenizer=tokenizer)
    return dataclasses.replace(
        config,
        data=DataConfig(root=str(root / "data"), dataset="refshapes"),
        cache_root=str(root / "stores"),
        fraction=0.25,
        segmentor=dataclasses.replace(bare, text=text),
        steps=100_000,
        batch_labelled=arguments.batch,
        batch_unlabelled=arguments.batch,
        precision=arguments.precision,
        compile=arguments.compile,
    )


def as_lavt(config: TrainConfig) -> TrainConfig:
    """The supervised recipe with LAVT's own decoder, norms and optimiser."""
    own = config.segmentor
    network = dataclasses.replace(
        own,
        vision=dataclasses.replace(own.vision, absolute_positions=False),
        decoder_width=4 * own.vision.embed_dim,
        decoder_norm="batch",
        decoder_upscale=1,
        fusion_norm="instance",
    )
    return dataclasses.replace(config, segmentor=network, optim=OptimConfig())


def source_of(config: TrainConfig) -> BatchSource:
    """Reads the batches of a single process."""
    tokenise = Tokenizer(config.segmentor, one_length=config.compile)
    return open_inputs(config).source(batch_plan(config), tokenise)


class Contender:
    """Our step of one recipe, over batches that are read already."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.source = source_of(config)
        self.batches = [self.source(key) for key in range(READ)]
        torch.manual_seed(0)
        self.model = build_segmentor(config.segmentor).to(DEVICE)
        self.networks = Networks(torch.compile(self.model) if config.compile else self.model)
        self.method = METHODS[config.method](config)
        self.optimizer = build_optimizer(self.model, config.optim, config.segmentor.loaded_parts)
        self.count = 0

    def step(self, batch: Batch | None = None) -> None:
        """One optimiser step."""
        if batch is None:
            batch = self.batches[self.count % READ]
        self.count += 1
        train_step(self.accelerator, self.networks, self.method, self.optimizer, [batch], self.config)


class PlainLavt(nn.Module):
    """LAVT as published: explicit attention everywhere, channels first in its fusion."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        vision, text = config.segmentor.vision, config.segmentor.text
        swin = SwinConfig(
            image_size=vision.image_size, patch_size=vision.patch, embed_dim=vision.embed_dim, depths=vision.depths,
            num_heads=vision.heads, window_size=vision.window, drop_path_rate=vision.drop_path,
        )  # fmt: skip
        words = BertConfig(
            vocab_size=text.vocab_size, hidden_size=text.hidden, num_hidden_layers=text.layers,
            num_attention_heads=text.heads, intermediate_size=text.mlp, max_position_embeddings=text.positions,
            hidden_dropout_prob=text.dropout, attention_probs_dropout_prob=text.dropout,
        )  # fmt: skip
        swin._attn_implementation = words._attn_implementation = "eager"
        self.swin = SwinModel(swin, add_pooling_layer=False)
        self.swin.layernorm = nn.Identity()
        self.bert = BertModel(words, add_pooling_layer=False)
        self.fusion = nn.ModuleList(Fusion(dim, text.hidden) for dim in vision.dims)
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh()
            )
            for dim in vision.dims
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in vision.dims)
        self.classifier = Decoder(vision.dims[-1])

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits at the image's size."""
        words = self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state.transpose(1, 2)
        x, grid = self.swin.embeddings(image)
        maps = []
        for layer, fusion, gate, norm in zip(
            self.swin.encoder.layers, self.fusion, self.gates, self.norms, strict=True
        ):
            for block in layer.blocks:
                x, _ = block(x, grid, always_partition=True)
            fused = fusion(x.transpose(1, 2), words, mask.to(x.dtype)).transpose(1, 2)
            maps.append(norm(fused).transpose(1, 2).unflatten(2, grid).contiguous())
            x = x + gate(fused) * fused
            if layer.downsample is not None:
                x, grid = layer.downsample(x, grid), ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        return F.interpolate(
            self.classifier(maps), size=image.shape[-2:], mode="bilinear", align_corners=True
        )


class PublishedStep:
    """LAVT's training step, with or without what it does between steps, and with its own or our window masks."""

    def __init__(self, config: TrainConfig, batches: list[Batch], emptying: bool, own_masks: bool) -> None:
        torch.manual_seed(0)
        self.model, self.batches, self.emptying, self.count = (
            PlainLavt(config).to(DEVICE),
            batches,
            emptying,
            0,
        )
        if not own_masks:
            layers = self.model.swin.encoder.layers
            harden_window_masks(block.attention for layer in layers for block in layer.blocks)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: (1 - step / 1e6) ** 0.9
        )
        self.weights = torch.tensor(CLASS_WEIGHTS, device=DEVICE)

    def step(self) -> None:
        """One step."""
        part = self.batches[self.count % READ].to(DEVICE).labelled
        self.count += 1
        output = self.model(normalise_image(part.image_BHW3), part.ids_BT, part.token_mask_BT)
        loss = F.cross_entropy(output, part.target_BHW.long(), weight=self.weights, ignore_index=255)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        total = loss.item() + loss.item()
        assert total == total, "the loss is not a number"
        if self.emptying:
            del part, output, loss
            gc.collect()
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()


def turns(steps: dict[str, Callable[[], None]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of each contender in each round; they take turns, after steps to warm up.

    Those are two, or, compiled, all batches held in memory, since code is generated anew for sizes not yet seen.
    """
    rounds, per_turn = arguments.rounds, arguments.steps
    for step in steps.values():
        for _ in range(READ if arguments.compile else 2):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = settled()
            for _ in range(per_turn):
                step()
            seconds[name].append((settled() - start) / per_turn)
    return seconds


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Paired ratios."""
    return [a / b for a, b in zip(over, under, strict=True)]


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def step_operations(contender: Contender) -> int:
    """Operations of as many steps as there are batches, without generated code, in which they are not seen."""
    networks, compiled = contender.networks, contender.networks.student
    networks.student = contender.model
    try:
        return operations(lambda: [contender.step() for _ in range(READ)])
    finally:
        networks.student = compiled


def paper_operations() -> float:
    """Operations of an l2l step over a fixmatch step at the size of the recipe `paper`, from passes of one image.

    A backward pass counts as two forward ones. FixMatch: a weak pass of the unlabelled images, a pass with gradient of
    all, and the texts to choose from. L2L also: a weak pass of the labelled images that see a field, and the structural
    module in the passes with gradient of all images that do.
    """
    config = RECIPES["paper"]()
    own = without_pretrained(config.segmentor)
    model = build_segmentor(own).eval()
    height, width = config.size_hw
    image = normalise_image(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    text = (
        torch.ones(1, own.text.max_tokens, dtype=torch.long),
        torch.ones(1, own.text.max_tokens, dtype=torch.bool),
    )
    field = torch.zeros(1, 1, height, width), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        plain = operations(lambda: model(image, *text))
        module = operations(lambda: model(image, *text, *field)) - plain
        words = operations(lambda: model.text_embedding(*text))
    labelled, unlabelled, seen = (
        config.batch_labelled,
        config.batch_unlabelled,
        config.l2l.field_probability,
    )
    both = labelled + unlabelled
    fixmatch = (unlabelled + 3 * both) * plain + (1 + config.text.candidates) * unlabelled * words
    return 1 + seen * (labelled * plain + 3 * both * module) / fixmatch


def policy_share(contender: Contender, rounds: int) -> float:
    """Share of an l2l step spent in the policy and its reward.

    That is the labelling and the policy's update, less one cut of pseudo-labels, which static thresholds need as well.
    """
    spent = {"policy": 0.0, "cut": 0.0}

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            start = settled()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += settled() - start

        return call

    method: Any = contender.method
    cut = l2l_module.pseudo_label
    method._label, method.finish_step = (
        timed(method._label, "policy"),
        timed(method.finish_step, "policy"),
    )
    l2l_module.pseudo_label = timed(cut, "cut")
    start = settled()
    for _ in range(rounds):
        contender.step()
    whole = settled() - start
    l2l_module.pseudo_label = cut
    del method._label, method.finish_step  # the class's own again
    return (spent["policy"] - spent["cut"] / 2) / whole  # two cuts a step: old thresholds and new


def loader_figures(contender: Contender, seconds_a_step: float, rounds: int) -> tuple[float, float]:
    """(what the loader delivers alone over what steps consume, share of a run's time spent waiting for it)."""
    runtime, keys = contender.config.runtime, range(READ, READ + rounds + 2)
    batches = iterate(contender.source, keys, workers=runtime.workers, prefetch=runtime.prefetch)
    next(batches), next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    alone = (time.perf_counter() - start) / rounds
    waited, batches = 0.0, iterate(contender.source, keys, workers=runtime.workers, prefetch=runtime.prefetch)
    contender.step(next(batches)), contender.step(next(batches))
    start = settled()
    for _ in range(rounds):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        contender.step(batch)
    return seconds_a_step / alone, waited / (settled() - start)


def gpu_figures(own: Contender, arguments: argparse.Namespace, seconds: Sequence[float]) -> list[Figure]:
    """On a GPU: most memory of an l2l step, and its operations over what the device could do in the time."""
    if DEVICE.type != "cuda":
        return []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(READ):
        own.step()
    figures = [figure("peak memory of l2l steps", [torch.cuda.max_memory_allocated() / 2**20], "MiB")]
    per_step = step_operations(own) / READ
    name = torch.cuda.get_device_name()
    peak = next((flops for known, flops in BF16_FLOPS.items() if known in name), None)
    if peak is not None and arguments.precision == "bf16":
        used = [per_step / (one * peak) for one in seconds]
        figures.append(figure("model FLOP utilisation of l2l steps", used, "", ">= 0.4"))
    return figures


def figures_of_methods(
    l2l: TrainConfig, fixmatch: TrainConfig, accelerator: Accelerator, arguments: argparse.Namespace
) -> list[Figure]:
    """L2L beside FixMatch, and its loader."""
    own, other = Contender(l2l, accelerator), Contender(fixmatch, accelerator)
    steps = turns({"l2l": own.step, "fixmatch": other.step}, arguments)
    found = [figure("l2l step time over fixmatch", ratios(steps["l2l"], steps["fixmatch"]), "x", "<= 1.10")]
    if arguments.scale == "embedded" or DEVICE.type == "cuda":
        counted = step_operations(own) / step_operations(other)
        found.append(figure("  the same in operations", [counted], "x", "<= 1.10"))
    note = "Swin-B, BERT-base, 480 x 480, one image"
    at_paper_size = figure(
        "  in operations at the size of the recipe paper", [paper_operations()], "x", "<= 1.10", note
    )
    policy = policy_share(own, arguments.rounds * arguments.steps)
    seconds = statistics.median(steps["l2l"])
    capacity, waiting = loader_figures(own, seconds, arguments.rounds * arguments.steps)
    waiting_limit = 0.01 if DEVICE.type == "cuda" else 0.03
    del other
    return [
        *found,
        at_paper_size,
        figure("policy and reward, share of a step", [policy], "", "<= 0.02"),
        figure("loader capacity over consumption", [capacity], "x", ">= 1"),
        figure("waiting for the loader, share of a step", [waiting], "", f"<= {waiting_limit}"),
        figure("l2l steps", [2 * arguments.batch / one for one in steps["l2l"]], "images/s"),
        *gpu_figures(own, arguments, steps["l2l"]),
    ]


def figures_beside_lavt(
    supervised: TrainConfig, accelerator: Accelerator, arguments: argparse.Namespace
) -> list[Figure]:
    """A supervised step beside LAVT's."""
    ours = Contender(as_lavt(supervised), accelerator)
    theirs = {
        name: PublishedStep(as_lavt(supervised), ours.batches, *options)
        for name, options in (
            ("emptying", (True, True)),
            ("bare", (False, True)),
            ("hardened", (False, False)),
        )
    }
    sizes = {
        sum(p.numel() for p in model.parameters())
        for model in (ours.networks.student, *(their.model for their in theirs.values()))
    }
    assert len(sizes) == 1, f"not the same network: {sizes} parameters"
    plain = turns(
        {"ours": ours.step, **{name: their.step for name, their in theirs.items()}},
        arguments,
    )
    return [
        figure("images/s over LAVT's step", ratios(plain["emptying"], plain["ours"]), "x", ">= 1.5"),
        figure("images/s over LAVT's step, no emptying", ratios(plain["bare"], plain["ours"]), "x", ">= 1.2"),
        figure(
            "images/s over LAVT's step, no emptying, our masks", ratios(plain["hardened"], plain["ours"]), "x"
        ),
        figure("supervised steps", [arguments.batch / one for one in plain["ours"]], "images/s"),
    ]


def measure(arguments: argparse.Namespace, root: Path) -> list[Figure]:
    """All figures."""
    names = (
        ("embedded", "fixmatch-embedded", "supervised-embedded")
        if arguments.scale == "embedded"
        else ("paper", "fixmatch-paper", "paper-baseline")
    )
    accelerator = Accelerator(cpu=DEVICE.type == "cpu")
    l2l, fixmatch, supervised = (configured(name, root, arguments) for name in names)
    found = []
    if arguments.part in ("", "methods"):
        found += figures_of_methods(l2l, fixmatch, accelerator, arguments)
    if arguments.part in ("", "lavt"):
        found += figures_beside_lavt(supervised, accelerator, arguments)
    return found


def main() -> None:
    """Run everything and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--scale", choices=("embedded", "paper"), default="embedded", help="size of the network"
    )
    parser.add_argument(
        "--batch", type=int, default=16, help="labelled, and as many unlabelled, images a step"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (default 7)")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn (default 3)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of our steps")
    parser.add_argument("--part", choices=("methods", "lavt"), default="", help="one half alone")
    parser.add_argument("--compile", action="store_true", help="our steps through torch.compile")
    parser.add_argument("--dir", default=None, help="folder for the drawn data (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        figures = measure(arguments, write_all(Path(folder), images=IMAGES))
    device = (
        torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    note = f"{arguments.scale}, batch {arguments.batch}, {arguments.precision}, {device}"
    note += ", compiled" if arguments.compile else ""
    print_figures("train", [dataclasses.replace(one, note=one.note or note) for one in figures])


if __name__ == "__main__":
    main()
