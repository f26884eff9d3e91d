"""How fast stage 1 is: over the bare engine, over one pair at a time, again, at scale, in memory, with two workers.

    python tests/bench/bench_priors.py [--part engine --part plan ...] [--pairs 2000] [--repeats 3] [--dir FOLDER]

Everything runs the recipe `embedded` on a drawn data set: the real engine, the shipped models. Repeats alternate
between contenders, since rates of a shared machine move; medians are shown, with the range. `--set` changes the recipe.

- engine   pairs/s of a run over those of vLLM given the same prompts in one call, as `LLM.chat` answers them and as the
           run asks (token ids alone, which spares vLLM half a run's text); the starts of the engine and of SAM's
           process are excluded
- loop     pairs/s of a run over those of one pair at a time with Transformers (`one_at_a_time.py`)
- again    a second run of an unchanged recipe: calls of the engine, seconds of the whole command
- plan     planning and looking for finished shards, 320,000 pairs of which half are done
- memory   peak memory of a run at `--pairs` and at ten times as many
- workers  pairs/s of two workers over one, without the engines' start
"""

import argparse
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, figure, peak_mib, print_figures

from shared.config import apply_overrides
from shared.datasets import load_dataset
from shared.store.layout import read_header
from shared.store.marks import read_mark
from shared.store.schema import SHARD_ROWS
from shared.store.writer import pending_shards, write_shard
from shared.synth.refshapes import write_refshapes
from stage1_priors.answers import make_request
from stage1_priors.config import CanaryConfig, PriorsConfig
from stage1_priors.engine import Engine
from stage1_priors.job import create, make_job, pending_of
from stage1_priors.plan import make_plan
from stage1_priors.proposers import PROPOSERS, Proposer
from stage1_priors.recipes import TINY_SAM_WEIGHTS, TINY_WEIGHTS, embedded
from stage1_priors.run import run_priors

CLI = Path(__file__).parents[2] / "cli.py"
PAIRS_PER_IMAGE = 5.4
PLAN_PAIRS = 320_000


def draw(root: Path, num_pairs: int) -> Path:
    """A drawn data set with about that many pairs in its train split; drawn once."""
    folder = root / f"data-{num_pairs}"
    if not folder.exists():
        write_refshapes(folder, num_train_images=max(1, round(num_pairs / PAIRS_PER_IMAGE)), progress=False)
    return folder


def settings_of(data: Path, cache: Path, extra: Sequence[str]) -> list[str]:
    """Changes to the recipe that every part makes: the train split of the drawn data, a cache of its own."""
    return [f"data.root={data}", f"cache_root={cache}", "splits=train", *extra]


def command(settings: Sequence[str], *options: str) -> tuple[float, str]:
    """Seconds of `l2l priors run embedded` as a process of its own, and what it said."""
    sets = itertools.chain.from_iterable(("--set", one) for one in settings)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(CLI), "priors", "run", "embedded", *sets, *options],
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, done.stderr


def child(part: str, **arguments: Any) -> Any:
    """What `part` of this file answers in a process of its own."""
    told = [sys.executable, __file__, "--child", part, "--arguments", json.dumps(arguments)]
    done = subprocess.run(told, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- over the bare engine, and over one pair at a time ------------------------------------------------------------


class Kept:
    """An engine that a run may close without ending it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.submit, self.collect, self.cache_hits = engine.submit, engine.collect, engine.cache_hits

    def close(self) -> None:
        """Leave it running."""


class KeptProposer:
    """A loaded proposer that a run may close without ending it."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self.propose, self.kept, self.kept_hw = proposer.propose, proposer.kept, proposer.kept_hw

    def load(self) -> None:
        """It is loaded."""

    def close(self) -> None:
        """Leave it running."""


class Engines:
    """One vLLM, and the ways to use it that are compared; every pass starts with empty caches."""

    def __init__(self, work: Path, num_pairs: int, extra: Sequence[str]) -> None:
        from stage1_priors.vllm_engine import VllmEngine

        settings = settings_of(draw(work, num_pairs), work / "cache", extra)
        self._config = replace(apply_overrides(embedded(), settings), canary=CanaryConfig(mode="skip"))
        self._work, self._passes = work, itertools.count()
        job = make_job(self._config)
        self.num_pairs = len(job.plan.samples)
        kind = self._config.proposer.kind
        self._kind, self._own = kind, PROPOSERS[kind]
        self._proposer = self._own.make(self._config.proposer, job.proposer_folder)
        self._engine = VllmEngine(job.model_folder, job.family, self._config.model, self._config.engine)
        self._proposer.load()
        PROPOSERS[kind] = replace(self._own, make=lambda *_: KeptProposer(self._proposer))
        requests = [
            make_request(job.dataset.image(sample), sample.expression, job.family, job.rules)
            for sample in job.plan.samples
        ]
        self._plain = self._engine._params.clone()
        self._plain.detokenize = True
        self._conversations = [self._engine._conversation(request) for request in requests]

    def _start(self) -> float:
        assert self._engine._llm.reset_prefix_cache(), "the prefix cache is in use"
        self._engine._llm.reset_mm_cache()
        return time.perf_counter()

    def bare(self) -> float:
        """Pairs/s of `LLM.chat` on all prompts at once, images in memory, answers thrown away."""
        return self._chat(self._plain)

    def bare_ids(self) -> float:
        """The same without text: tokens come as ids alone, which is how a run asks."""
        return self._chat(self._engine._params)

    def _chat(self, params: Any) -> float:
        start = self._start()
        self._engine._llm.chat(self._conversations, params, use_tqdm=False)
        return self.num_pairs / (time.perf_counter() - start)

    def run(self, *changes: str) -> float:
        """Pairs/s of a whole run into a new store."""
        cache = self._work / f"cache-{next(self._passes)}"
        config = apply_overrides(self._config, [f"cache_root={cache}", *changes])
        start = self._start()
        run_priors(config, engine_factory=lambda *_: Kept(self._engine), quiet=True)
        return self.num_pairs / (time.perf_counter() - start)

    def close(self) -> None:
        """Stop the engine and the proposer; runs make proposers of their own again."""
        PROPOSERS[self._kind] = self._own
        self._engine.close()
        self._proposer.close()


def bench_engine(work: Path, args: argparse.Namespace) -> list[Figure]:
    """A run with each kind of mask, over the bare engine."""
    engines = Engines(work, args.pairs, args.set)
    ways = {
        "bare": engines.bare,
        "ids": engines.bare_ids,
        "sam": engines.run,
        "box": partial(engines.run, "proposer.kind=soft-box"),
    }
    engines.bare(), engines.run()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            rates[name].append(way())
    engines.close()
    note = f"{engines.num_pairs} pairs, {os.cpu_count()} cores"

    def over(mine: str, its: str) -> list[float]:
        return [one / other for one, other in zip(rates[mine], rates[its], strict=True)]

    shares = "SAM 2 shares the CPU with the engine"
    return [
        figure("run with SAM 2", rates["sam"], "pairs/s", note=note),
        figure("run with soft boxes", rates["box"], "pairs/s", note=note),
        figure("bare engine, same prompts", rates["bare"], "pairs/s", note=note),
        figure("bare engine, same prompts, ids alone", rates["ids"], "pairs/s", note=note),
        figure("run with SAM 2 over bare engine", over("sam", "bare"), "x", ">= 0.95", shares),
        figure("run with soft boxes over bare engine", over("box", "bare"), "x", ">= 0.95"),
        figure("run with SAM 2 over bare engine, ids alone", over("sam", "ids"), "x", note=shares),
        figure("run with soft boxes over bare engine, ids alone", over("box", "ids"), "x"),
    ]


def bench_loop(work: Path, args: argparse.Namespace) -> list[Figure]:
    """A run over one pair at a time; the loop runs in a process of its own, so that no engine takes its threads."""
    engines = Engines(work, args.pairs, args.set)
    engines.run()
    run, loop = [], []
    for _ in range(args.repeats):
        run.append(engines.run())
        seconds = child("loop", data=str(draw(work, args.pairs)), num=args.sample, out=str(work))
        loop.append(1 / seconds)
    engines.close()
    over = [mine / its for mine, its in zip(run, loop, strict=True)]
    note = f"{args.sample} pairs, Transformers, float32, greedy, models warm"
    return [
        figure("one pair at a time", loop, "pairs/s", note=note),
        figure("run with SAM 2 over one pair at a time", over, "x", ">= 10"),
    ]


def child_loop(data: str, num: int, out: str) -> float:
    """Seconds a pair of the loop, on pairs spread evenly over the data set."""
    from one_at_a_time import seconds_per_pair

    config = apply_overrides(embedded(), [f"data.root={data}"])
    dataset = load_dataset(config.data)
    samples = dataset.samples("train")
    picked = [samples[row] for row in np.linspace(0, len(samples) - 1, num).astype(int)]
    pairs = [(dataset.image_path(sample), sample.expression) for sample in picked]
    masks = Path(out) / "loop"
    masks.mkdir(exist_ok=True)
    return seconds_per_pair(pairs, TINY_WEIGHTS, TINY_SAM_WEIGHTS, config.model.max_tokens, masks)


# ---- the same recipe again, planning at scale ---------------------------------------------------------------------


def bench_again(work: Path, args: argparse.Namespace) -> list[Figure]:
    """The command on a finished store, and how often it starts an engine."""
    settings = settings_of(draw(work, args.pairs), work / "again", args.set)
    command(settings)
    seconds, calls = [], []
    for _ in range(args.repeats):
        wall, said = command(settings)
        assert "nothing to do" in said, said
        seconds.append(wall)
    started: list[Any] = []
    run_priors(
        apply_overrides(embedded(), settings), engine_factory=lambda *told: started.append(told), quiet=True
    )
    calls.append(float(len(started)))
    return [
        figure("second run: engines started", calls, "", "<= 0"),
        figure("second run: the whole command", seconds, "s", "<= 2", f"{args.pairs} pairs"),
    ]


def write_large(root: Path, num_pairs: int) -> None:
    """A REFER data set of four objects an image and four sentences an object, images hard links to one file."""
    images, annotations, refs = [], [], []
    (root / "images").mkdir(parents=True)
    (root / "large").mkdir()
    first = next((draw(root, 6) / "images").iterdir())
    for image in range(num_pairs // 16):
        name = f"{image:012d}.jpg"
        os.link(first, root / "images" / name)
        images.append({"id": image, "file_name": name, "height": 128, "width": 128})
        for index in range(4):
            ref = 4 * image + index
            corner, side = 8.0 * index, 40.0
            polygon = [corner, corner, corner + side, corner, corner + side, corner + side]
            annotations.append({"id": ref, "image_id": image, "category_id": 1, "segmentation": [polygon]})
            text = f"the thing number {index} from the left"
            sentences = [{"sent_id": 4 * ref + k, "sent": text, "raw": text} for k in range(4)]
            refs.append(
                {"ref_id": ref, "ann_id": ref, "image_id": image, "split": "train", "sentences": sentences}
            )
    (root / "large" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "large" / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def large_config(root: Path) -> PriorsConfig:
    """A recipe over that data set whose rows are small, so that half a store is soon written."""
    extra = ["data.dataset=large", "proposer.kind=soft-box", "proposer.grid=8"]
    return apply_overrides(embedded(), settings_of(root, root / "cache", extra))


def bench_plan(work: Path, args: argparse.Namespace) -> list[Figure]:
    """Planning and the scan at full and at a tenth of the size, in processes of their own."""
    answers = {}
    for num_pairs in (args.plan_pairs // 10, args.plan_pairs):
        root = work / f"large-{num_pairs}"
        write_large(root, num_pairs)
        job = make_job(large_config(root))
        create(job, {})
        fields = read_header(job.path).run_fields
        for shard in range(0, job.plan.num_shards, 2):
            rows = len(job.plan.shard(shard))
            arrays = {spec.name: np.ones((rows, *spec.row_shape), spec.numpy_dtype) for spec in fields}
            write_shard(job.path, shard, arrays, {})
        del job
        answers[num_pairs] = [child("plan", root=str(root)) for _ in range(args.repeats)]
    small, large = answers.values()

    def column(name: str, rows: list[dict[str, float]]) -> list[float]:
        return [row[name] for row in rows]

    size = f"{args.plan_pairs:,} pairs, half of the shards done"
    return [
        figure("planning + scan for finished shards", column("plan", large), "s", "<= 2", size),
        figure(
            "  memory they add to the annotations",
            column("added", large),
            "MiB",
            "<= 16",
            f"most at once, {size}",
        ),
        figure("  the same at a tenth of the pairs", column("added", small), "MiB"),
        figure("  reading the annotations", column("read", large), "s", note=size),
        figure("  peak memory, most of it annotations", column("rss", large), "MiB", note=size),
        figure("  peak memory at a tenth of the pairs", column("rss", small), "MiB"),
        figure(
            "  a resumed run up to its first request", column("all", large), "s", note="with image hashes"
        ),
    ]


def child_plan(root: str) -> dict[str, float]:
    """Seconds and MiB of each part of what a resumed run does before it needs an engine."""
    config = large_config(Path(root))
    start = time.perf_counter()
    dataset = load_dataset(config.data).without_masks(())
    read = time.perf_counter() - start
    samples, path = dataset.samples(), next(Path(config.cache_root).glob("*.zarr"))
    start = time.perf_counter()
    plan = make_plan(samples, config.splits, SHARD_ROWS, root)
    pending = pending_shards(path)
    seconds, rss = time.perf_counter() - start, peak_mib()
    assert 0 < len(pending) < plan.num_shards, f"{len(pending)} of {plan.num_shards} shards pending"
    tracemalloc.start()
    make_plan(samples, config.splits, SHARD_ROWS, root)
    pending_shards(path)
    added = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    del dataset, samples, plan
    start = time.perf_counter()
    assert pending_of(make_job(config)) == pending
    whole = time.perf_counter() - start
    return {"all": whole, "read": read, "plan": seconds, "added": added, "rss": rss}


# ---- memory, workers ----------------------------------------------------------------------------------------------


def bench_memory(work: Path, args: argparse.Namespace) -> list[Figure]:
    """Peak memory of runs of two sizes, the real engine within the process."""
    peaks = []
    for number, num_pairs in enumerate((args.pairs, 10 * args.pairs)):
        settings = settings_of(draw(work, num_pairs), work / f"memory-{number}", args.set)
        peaks.append(child("memory", settings=settings))
    return [
        figure(f"peak memory, {args.pairs} pairs", [peaks[0]], "MiB", note="vLLM within the process"),
        figure(f"peak memory, {10 * args.pairs} pairs", [peaks[1]], "MiB", note="vLLM within the process"),
        figure("  large over small", [peaks[1] / peaks[0]], "x", "<= 1.1"),
    ]


def child_memory(settings: list[str]) -> float:
    """Peak memory of a whole run."""
    run_priors(apply_overrides(embedded(), settings), quiet=True)
    return peak_mib()


def pairs_per_second(cache: Path, num_workers: int) -> float:
    """Pairs/s of a finished store from its own marks: seconds a shard took its worker, the slowest worker counting."""
    header = read_header(next(cache.glob("*.zarr")))
    seconds = [0.0] * num_workers
    for shard in range(header.num_shards):
        seconds[shard % num_workers] += read_mark(header, shard)["info"]["seconds"]
    return header.num_rows / max(seconds)


def bench_workers(work: Path, args: argparse.Namespace) -> list[Figure]:
    """One and two workers as the command starts them."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(args.repeats):
        for num_workers, found in rates.items():
            cache = work / f"workers-{num_workers}-{repeat}"
            settings = settings_of(draw(work, args.pairs), cache, args.set)
            command(settings, "--workers", str(num_workers))
            found.append(pairs_per_second(cache, num_workers))
    over = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    note = f"{os.cpu_count()} cores, engine start excluded"
    return [figure("two workers over one", over, "x", note=note)]


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[Figure]]] = {
    "engine": bench_engine,
    "loop": bench_loop,
    "again": bench_again,
    "plan": bench_plan,
    "memory": bench_memory,
    "workers": bench_workers,
}
CHILDREN: dict[str, Callable[..., Any]] = {
    "loop": child_loop,
    "plan": child_plan,
    "memory": child_memory,
}


def main() -> None:
    """Run the parts and print their figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated; default all")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of a run, about (default 2000)")
    parser.add_argument("--sample", type=int, default=100, help="pairs asked one at a time (default 100)")
    parser.add_argument("--plan-pairs", type=int, default=PLAN_PAIRS, help=f"default {PLAN_PAIRS}")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each contender (default 3)")
    parser.add_argument("--set", action="append", default=[], help="change a field of the recipe")
    parser.add_argument("--dir", default=None, help="folder for the files (default: the system's)")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](**json.loads(args.arguments))))
        return
    for part in args.part or PARTS:
        print(f"{part} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            print_figures("priors", PARTS[part](Path(folder), args))


if __name__ == "__main__":
    main()
