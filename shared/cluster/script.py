"""The batch script of a job, as text: a pure function of the job and the site.

Every script has the same frame. It keeps a small file per task that says how the task fares (`status.py` reads it),
and touches that file while it lives. Told to stop, by USR1 some time before the limit, it tells its command to stop,
waits for it, kills it shortly before the limit, which would end the job for good, and is queued again by `scontrol
requeue`, not by its exit status: where the site's `RequeueExit` holds `STOPPED` Slurm would do so too, but first drop
the jobs that wait for this one to end well.

A training is one torchrun per node. Its rendezvous is the first node of the job's own list at the address Slurm has for
it and a port that is free there, and without that the job fails; the first node is told that it is the host, which
torchrun else guesses from names. The processes meet at the address that Slurm has for one of the nodes, and not at the
name that this node has for itself, which the others may not know.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.cluster.site import SiteConfig
from shared.errors import DataError
from shared.ranges import as_ranges
from shared.stopping import STOPPED

BEAT_S = 15
"""Seconds between two touches of a task's file."""

NODE_FAILED = STOPPED + 1
"""Least exit status of a node whose part of a training failed: srun gives the highest, so that it hides `STOPPED`."""


START_MARK = "== "
"""A line of a log that begins so opens one start of its task."""


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """One job, or one array of jobs."""

    name: str
    """What it does: `priors`, `verify`, `train`, `eval` or `ablate`; part of the names of its files."""
    command: tuple[str, ...]
    """Arguments of `l2l`."""
    per_task: str = ""
    """Further arguments, as shell text in which `$task` is the number of the task."""
    tasks: tuple[int, ...] = ()
    """Numbers of the tasks of an array; empty: a single job, whose task is 0."""
    num_nodes: int = 1
    """Nodes of a training."""
    num_processes: int = 0
    """Processes per node that torchrun starts; 0: a single process without torchrun."""
    use_gpu: bool = True
    """Whether it needs GPUs, if the site has some."""
    num_gpus: int = 1
    """GPUs of each process that needs them; above 1 a site without so many is refused."""
    hub_cache: str = ""
    """Absolute folder of the Hugging Face cache in which models named by a repository lie; "" where none is."""
    after_others: bool = False
    """Whether it waits for all jobs submitted before it together with it, and is dropped if one of them fails."""
    after: tuple[str, ...] = ()
    """Ids of jobs submitted earlier that it waits for as well, and with which it is dropped."""


def script_of(job: ClusterJob, site: SiteConfig, folder: Path, working_folder: Path, python: str) -> str:
    """The script of a job.

    Args:
        job: The job.
        site: The site.
        folder: Absolute folder of scripts, logs and task files.
        working_folder: Absolute folder in which the command runs.
        python: Interpreter, where the site names none.

    Raises:
        DataError: A folder whose name Slurm would change, or more GPUs for a process than a node has.
    """
    python = site.python or python
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {line}" for line in _options(job, site, folder, working_folder)),
        "",
        "set -eo pipefail",
        f"trap 'exit {STOPPED}' TERM USR1 # until there is something to stop: the trap on exit would see a 0",
        f"name={job.name} folder={shlex.quote(str(folder))}",
        _TASK if job.tasks else "task=0 job=$SLURM_JOB_ID id=$SLURM_JOB_ID log=$name.$SLURM_JOB_ID.log",
        _FRAME.format(
            stopped=STOPPED,
            node_failed=NODE_FAILED,
            start_mark=START_MARK,
            beat_s=BEAT_S,
            max_restarts=site.max_restarts,
            stop=_STOP_STEP.format(patience_s=site.notice_s // 2) if job.num_processes else _STOP_CHILD,
            kill=_KILL_STEP if job.num_processes else _KILL_CHILD,
            kill_s=_kill_s(site),
            wait=_WAIT,
        ),
        *_setup(site),
        "export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1",
        *([f"export HF_HUB_CACHE={shlex.quote(job.hub_cache)}"] if job.hub_cache else []),
        "",
        *(_torchrun(job, site, python) if job.num_processes else _single(job, site, python)),
        "",
    ]
    return "\n".join(lines)


def _kill_s(site: SiteConfig) -> int:
    """Seconds after the notice at which what is still busy is killed: the job must be queued again before its limit."""
    return max(1, site.notice_s - 20, site.notice_s * 3 // 4)


def _options(job: ClusterJob, site: SiteConfig, folder: Path, working_folder: Path) -> list[str]:
    for path in (folder, working_folder):
        if not path.is_absolute() or set(str(path)) & set("%\n\r\"'\\"):
            raise DataError(f"{path}: Slurm takes no percent sign, quote or backslash in a folder's name")
    processes = max(1, job.num_processes)
    if job.use_gpu and job.num_gpus > max(1, site.gpus_per_node):
        raise DataError(
            f"a task of {job.name} needs {job.num_gpus} GPUs, and gpus_per_node of the site is {site.gpus_per_node}"
        )
    gpus = processes * job.num_gpus if job.use_gpu and site.gpus_per_node else 0
    gres = f"{site.gpu_type}:{gpus}" if site.gpu_type else str(gpus)
    log = f"{job.name}.{'%A_%a' if job.tasks else '%j'}.log"
    options = {
        "job-name": f"l2l-{job.name}",
        "partition": site.partition,
        "account": site.account,
        "time": site.time,
        "nodes": str(job.num_nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(site.cpus_per_process * processes),
        "mem": f"{site.memory_mb_per_process * processes}M" if site.memory_mb_per_process else "",
        "gres": f"gpu:{gres}" if gpus else "",
        "signal": f"B:USR1@{site.notice_s}",
        "array": _whole_array(job, site),
        "open-mode": "append",
        "chdir": f'"{working_folder}"',
        "output": f'"{folder / log}"',
    }
    return [*(f"--{name}={value}" for name, value in options.items() if value), "--requeue", *site.sbatch]


def _whole_array(job: ClusterJob, site: SiteConfig) -> str:
    """Value of `--array` where one array holds all tasks without an offset, else nothing: a script holds but one."""
    chunks = array_chunks(job.tasks, site.max_array_size or max(job.tasks, default=0) + 1)
    return array_value(chunks[0][1], site) if [offset for offset, _ in chunks] == [0] else ""


def array_value(indices: str, site: SiteConfig) -> str:
    """Value of `--array`: the indices, and how many tasks may run at once."""
    return f"{indices}%{site.max_running}" if site.max_running else indices


_TASK = """\
if [ -z "$SLURM_ARRAY_JOB_ID" ]; then
  echo "error: this is a part of an array: sbatch --array=INDICES $name.sh [OFFSET]; task = OFFSET + index" >&2
  exit 2
fi
first=${1:-0} # an array wider than the site allows comes as several, each with an offset
task=$((first + SLURM_ARRAY_TASK_ID)) job=$SLURM_ARRAY_JOB_ID
id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # of this task alone: one has the array's own number as its job's
log=$name.$id.log"""

_STOP_CHILD = '  kill -TERM "$child" 2>/dev/null || true'
_STOP_STEP = """\
  # The processes of a training take USR1 and save; torchrun ignores it and waits for them. TERM, which it hands on and
  # follows by KILL, is for those that do not listen yet.
  local signal=$1 step=$SLURM_JOB_ID.$step_number
  scancel --signal="$signal" "$step" 2>/dev/null || kill -TERM "$child" 2>/dev/null || true
  if [ "$signal" = USR1 ]; then (sleep {patience_s} && kill -0 $$ && scancel --signal=TERM "$step") &>/dev/null & fi"""
_KILL_CHILD = 'kill -KILL "$child" 2>/dev/null || true'
_KILL_STEP = f"""\
(scancel --signal=KILL "$SLURM_JOB_ID.$step_number"; sleep 5) &>/dev/null || true
    {_KILL_CHILD}"""

_WAIT = """\
  while :; do
    caught= status=0
    wait "$child" || status=$?
    if [ -z "$caught" ] || [ "$status" -le 128 ]; then break; fi
  done"""
"""Of a shell: until the child has ended, whatever signals come meanwhile; its exit status."""

_ADDRESS_OF = 'scontrol show node "{}" | sed -n "s/.*NodeAddr=\\([^ ]*\\).*/\\1/p"'
_NODE = f"""\
  told= child= caught= status=
  trap "told=1 caught=1" TERM USR1
  export PET_LOCAL_ADDR=$({_ADDRESS_OF.format("$SLURMD_NODENAME")}) PET_RDZV_CONF=is_host=$((SLURM_NODEID == 0))
  (trap "" USR1; exec "$@") &
  child=$!
{_WAIT}
  if [ "$status" -eq 0 ]; then exit 0; fi
  if [ -n "$told" ]; then exit {STOPPED}; fi
  exit $((status < {NODE_FAILED} ? {NODE_FAILED} : status))"""

_FRAME = """\
file=$folder/$name.$task.json restarts=${{SLURM_RESTART_COUNT:-0}} deadline=

record() {{ # STATE STATUS: how this task fares, for `l2l status`
  local form='"job": "%s", "host": "%s", "restarts": %d, "log": "%s", "state": "%s", "status": %d'
  printf "{{$form}}\\n" "$job" "$(hostname)" "$restarts" "$log" "$1" "$2" >"$file.$$"
  mv "$file.$$" "$file"
}}
owns() {{ # whether no later start of this task has taken the file over, as when Slurm lost sight of this one
  [[ $(<"$file") == *'"job": "'"$job"'", '*'"restarts": '"$restarts, "* ]]
}}
is_cancelled() {{ # whether somebody has: Slurm then sends what it sends at the limit, and its words alone differ
  [[ $(scontrol --oneliner show job "$id" 2>/dev/null) == *" JobState=COMPLETING "* ]] &&
    grep -a "JOB $SLURM_JOB_ID ON .* CANCELLED AT" "$folder/$log" | tail -n 1 | grep -qv "DUE TO"
}}
finish() {{
  local status=$?
  trap '' TERM USR1
  kill "$beat" $deadline 2>/dev/null || true
  if ! owns; then exit "$status"; fi
  if [ "$status" -ne 0 ] && is_cancelled; then
    record cancelled "$status"
    exit 143
  fi
  if [ "$status" -eq {stopped} ] && [ "$restarts" -ge {max_restarts} ]; then
    echo "error: stopped and queued again $restarts times without coming to an end" >&2
    status=1
  fi
  record ended "$status"
  if [ "$status" -eq {stopped} ]; then
    local again
    for again in {{1..20}}; do # the controller may be about to be started again
      if scontrol show config >/dev/null; then break; fi
      sleep 5
    done
    scontrol requeue "$id" || true # else the exit status is left, for RequeueExit
  fi
  exit "$status"
}}
run() {{ # COMMAND...: to its end, or until this job is told to stop
  local asked= caught status
  "$@" &
  child=$!
  trap 'caught=1 asked=1; stop USR1' USR1
  trap 'caught=1 asked=1; stop TERM' TERM
{wait}
  if [ "$status" -ne 0 ] && [ -n "$asked" ]; then exit {stopped}; fi
  if [ "$status" -eq {node_failed} ]; then exit 1; fi
  exit "$status"
}}
stop() {{ # SIGNAL: pass it on, and see to it that this job is queued again before Slurm ends it for good
{stop}
  if [ -n "$deadline" ]; then return; fi
  (
    sleep {kill_s} &>/dev/null && kill -0 $$ 2>/dev/null || exit 0
    echo "stopped at its deadline: busy for {kill_s} s after it was told, so killed; what is finished is kept"
    {kill}
  ) &
  deadline=$!
}}

echo "{start_mark}$name, task $task: start $((restarts + 1)) on $(hostname)"
record running 0
(while sleep {beat_s} &>/dev/null && kill -0 $$ 2>/dev/null && owns; do touch "$file"; done) &
beat=$!
trap finish EXIT
"""


def _setup(site: SiteConfig) -> list[str]:
    """The site's own lines, between two that let one that fails be named."""
    if not site.setup:
        return []
    named = """trap 'echo "error: this line of setup in cluster.toml failed: $BASH_COMMAND" >&2' ERR"""
    return [named, *site.setup, "trap - ERR", ""]


def own_interpreter(site: SiteConfig) -> list[str]:
    """Words that start the interpreter of the jobs; none if it is the one that submits."""
    if not site.container and not site.python:
        return []
    return _interpreter(site, sys.executable)


def _interpreter(site: SiteConfig, python: str, inside: Sequence[str] = ()) -> list[str]:
    """Words that start the site's interpreter, `python` where it names none; in its container, if any, by `inside`."""
    container = [*shlex.split(site.container), *inside] if site.container else []
    return [*container, site.python or python]


def _single(job: ClusterJob, site: SiteConfig, python: str) -> list[str]:
    words = [*_interpreter(site, python), "-m", "cli", *job.command]
    return [" ".join(part for part in ("run", shlex.join(words), job.per_task) if part)]


def _torchrun(job: ClusterJob, site: SiteConfig, python: str) -> list[str]:
    words = _interpreter(site, python)
    # A container may handle USR1 itself, so that what it starts would no longer ignore it.
    deaf = ("bash", "-c", 'trap "" USR1; exec "$@"', "container")
    launch = [*_interpreter(site, python, deaf), "-m", "torch.distributed.run"]
    return [
        "read -r head < <(scontrol show hostnames \"$SLURM_JOB_NODELIST\") || head=''",
        f"address=$({_ADDRESS_OF.format('$head')})",
        'if [ -z "$head" ] || [ -z "$address" ]; then',
        '  echo "error: the first node of \\"$SLURM_JOB_NODELIST\\" has no address: no rendezvous" >&2',
        "  exit 1",
        "fi",
        "# Slurm runs this script on the first node, so a port that is free here is free there.",
        f'port=$({shlex.join(words)} -m shared.cluster.port "$SLURM_JOB_ID")',
        "# What is left of an earlier start that Slurm lost sight of ends its step by number; this one takes another.",
        "step_number=$((restarts % 2))",
        'if [ "$step_number" -eq 1 ]; then srun --nodes=1 --ntasks=1 true; fi',
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}",
        # A TERM it hands on, and ends after so long what is still writing a checkpoint, before all is killed.
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={max(1, site.notice_s // 4)}",
        "# Each node's own shell notes that it was told to stop. The steps alone are told when a job is to make room",
        "# for another, and torchrun ends with 1 then. A node is told (by TERM) also when another one has failed.",
        f"node='\n{_NODE}'",
        # srun does not take over --cpus-per-task from sbatch.
        f"run srun --cpus-per-task={site.cpus_per_process * job.num_processes} --kill-on-bad-exit=1 \\",
        '  bash -c "$node" node \\',
        f"  {shlex.join(launch)} \\",
        f"  --nnodes={job.num_nodes} --nproc-per-node={job.num_processes} --max-restarts=0 --rdzv-backend=c10d \\",
        '  --rdzv-endpoint="$address:$port" --rdzv-id="$SLURM_JOB_ID.$restarts" \\',
        f"  -m cli {shlex.join(job.command)}",
    ]


def array_chunks(tasks: Sequence[int], max_array_size: int) -> list[tuple[int, str]]:
    """Arrays that hold all tasks, as (offset, value of `--array`); no index reaches `max_array_size`.

    Args:
        tasks: Numbers of the tasks, ascending.
        max_array_size: `MaxArraySize`, which bounds the highest index and not the count.
    """
    chunks: dict[int, list[int]] = {}
    for task in tasks:
        chunks.setdefault(task // max_array_size * max_array_size, []).append(task % max_array_size)
    return [(offset, as_ranges(indices)) for offset, indices in chunks.items()]
