"""The batch jobs of stage 1: an array of workers over the shards that are missing, then a check of the whole store."""

import json
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared.cluster.script import ClusterJob
from shared.cluster.submit import Work, jobs_folder
from shared.config import apply_overrides, as_options
from shared.errors import DataError
from shared.hub import cache_folder
from shared.ranges import as_ranges
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.hub_models import pins
from stage1_priors.job import Job, StoreJob, changes, find_known_rows, job_of, pending_of, require_engine
from stage1_priors.preflight import replaced_images, require_images, require_room_for
from stage1_priors.reuse import Reusable, nothing_reusable


def plan_work(
    config: PriorsConfig | ImportConfig,
    arguments: Sequence[str],
    num_tasks: int,
    elsewhere: Sequence[str] = (),
    *,
    quiet: bool = True,
) -> Work:
    """The jobs that fill a store.

    A task is a worker, `priors run --worker i --num-workers n --shards LIST`: every n-th of the shards that are missing
    now, so that a task that is queued again knows which are its own. No job is submitted when the store is
    complete; what is written does not depend on n, so another submission may be wider or narrower. A model named by a
    repository is held at the commit that lies in the local cache, where the workers find it.

    Args:
        config: The recipe.
        arguments: Arguments of `priors run` that give it: its name and `--set` options.
        num_tasks: Workers (n); no more than there are missing shards.
        elsewhere: Words that start the jobs' own interpreter, where it is not this one: a store is named by the
            packages that fill it, so that one is asked for the name.
        quiet: No progress over the images that are read for the first time.

    Raises:
        DataError: A limit on the pairs, unusable data, no model on this machine, no engine in its environment, too many
            lost images, pairs that the model has no room for, or an interpreter that does not answer; found before
            anything is queued.
    """
    if num_tasks < 1:
        raise DataError(f"--tasks is {num_tasks}, expected at least 1")
    if isinstance(config, PriorsConfig) and config.limit is not None:
        raise DataError(
            f"limit is {config.limit}: so few pairs need no batch jobs; use `l2l priors run RECIPE --limit "
            f"{config.limit}`"
        )
    if not elsewhere:
        require_engine(config)
    pinned = pins(config)
    job = job_of(apply_overrides(config, pinned), quiet=quiet)
    run = ("priors", "run", *arguments, *as_options(pinned))
    if elsewhere:
        job = replace(job, path=_path_named_by([*elsewhere, "-m", "cli", *run]))
    pending = pending_of(job)
    width = min(num_tasks, len(pending))
    known = (
        find_known_rows(job) if isinstance(job, Job) and pending else nothing_reusable(len(job.plan.samples))
    )
    notes = replaced_images(job) + (require_images(job) if pending else [])
    require_room_for(job, pending, known)
    verify = ("priors", "verify", str(job.path), "--complete")
    if isinstance(config, PriorsConfig):
        run = (*run, "--expect", str(job.path))
    jobs = (
        ClusterJob(
            name="priors",
            command=run,
            per_task=f'--worker "$task" --num-workers {width} --shards {as_ranges(pending)}',
            tasks=tuple(range(width)),
            use_gpu=isinstance(config, PriorsConfig),  # masks from elsewhere are read without a model
            num_gpus=config.engine.gpus if isinstance(config, PriorsConfig) else 1,
            hub_cache=str(cache_folder()) if pinned else "",
        ),
        ClusterJob(name="verify", command=verify, use_gpu=False, after_others=True),
    )
    return Work(
        target=job.path,
        folder=jobs_folder(job.path),
        jobs=jobs if pending else (),
        here=(("-m", "cli", *run, "--workers", "auto"), ("-m", "cli", *verify)) if pending else (),
        notes=(*notes, *(() if job.path.exists() or elsewhere else _news(job, known))),
    )


def _news(job: StoreJob, known: Reusable) -> tuple[str, ...]:
    """Of a store that is not there yet: how it differs from the nearest one, and what need not be asked again."""
    num = len(job.plan.samples)
    of = f"{job.path}: a new store" + (f", {known.num} of {num} pairs are known" if known.num else "")
    return (of, *changes(job))


def _path_named_by(command: Sequence[str]) -> Path:
    """The store that a `priors run` would fill, by its own word."""
    asked = [*command, "--dry-run", "--json"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        answer = json.loads(done.stdout) if not done.returncode else None
    except OSError as error:
        raise DataError(f"{shlex.join(asked)}: {error.strerror or error}") from error
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("store"), str):
        said = (answer or {}).get("problem") or (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(f"{shlex.join(asked)}: does not say which store it would fill: {said}")
    return Path(answer["store"])
