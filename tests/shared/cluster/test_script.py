"""Scripts as text, and what the frame of one does around a command; on a real Slurm see tests/cluster."""

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cluster.script import ClusterJob, array_chunks, script_of
from shared.cluster.site import SiteConfig
from shared.errors import DataError
from shared.stopping import STOPPED

PRIORS = ClusterJob(name="priors", command=("priors", "run", "r"), per_task='--worker "$task"', tasks=(0, 1))
TRAINING = ClusterJob(name="train", command=("train", "r", "--set", "a=b c"), num_nodes=2, num_processes=4)
VERIFY = ClusterJob(name="verify", command=("priors", "verify", "s.zarr"), use_gpu=False)


def script(job, folder=Path("/jobs"), **site):
    return script_of(job, SiteConfig(**site), folder, Path("/code"), "/env/python")


def options(text):
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert lines == text.splitlines()[1 : 1 + len(lines)], "Slurm reads options up to the first command"
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines)


def test_a_task_of_an_array_takes_one_gpu():
    asked = options(script(PRIORS, gpus_per_node=4, cpus_per_process=6))
    assert (asked["nodes"], asked["gres"], asked["cpus-per-task"]) == ("1", "gpu:1", "6")
    assert asked["output"] == '"/jobs/priors.%A_%a.log"' and asked["open-mode"] == "append"
    assert asked["signal"] == "B:USR1@120" and "requeue" in asked


def test_a_script_by_itself_is_the_whole_array_or_says_what_it_lacks(tmp_path):
    """Submitted by hand without `--array` it would be task 0 alone, and end well."""
    assert options(script(PRIORS))["array"] == "0-1"
    assert options(script(replace(PRIORS, tasks=(0, 1, 2, 5)), max_running=4))["array"] == "0-2,5%4"
    assert "array" not in options(script(PRIORS, max_array_size=1))
    assert "array" not in options(script(replace(PRIORS, tasks=(7,)), max_array_size=5))
    assert "array" not in options(script(VERIFY)) and "array" not in options(script(TRAINING))
    text = script_of(PRIORS, SiteConfig(max_array_size=1), tmp_path, tmp_path, "/no/python")
    alone = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", "-c", text], env=alone | {"SLURM_JOB_ID": "43"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "error: this is a part of an array: sbatch --array=INDICES priors.sh [OFFSET]" in done.stderr


def test_a_training_takes_a_gpu_for_every_process_of_a_node():
    asked = options(script(TRAINING, gpus_per_node=4, gpu_type="a100", memory_mb_per_process=1000))
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gres"]) == ("2", "1", "gpu:a100:4")
    assert (asked["cpus-per-task"], asked["mem"]) == ("16", "4000M")
    assert asked["output"] == '"/jobs/train.%j.log"'


def test_no_gpu_is_asked_for_where_there_is_none_or_none_is_needed():
    assert "gres" not in options(script(PRIORS, gpus_per_node=0))
    assert "gres" not in options(script(VERIFY, gpus_per_node=4))


def test_a_task_may_need_several_gpus():
    wide = replace(PRIORS, num_gpus=2)
    assert options(script(wide, gpus_per_node=4))["gres"] == "gpu:2"
    for there in (0, 1):
        with pytest.raises(
            DataError, match=f"a task of priors needs 2 GPUs, and gpus_per_node of the site is {there}"
        ):
            script(wide, gpus_per_node=there)


def test_what_the_site_says_is_in_its_place():
    site = {
        "partition": "gpu",
        "account": "vision",
        "time": "8:00:00",
        "notice_s": 300,
        "setup": ("module load cuda/12.8",),
        "container": "apptainer exec --nv l2l.sif",
        "python": "python3",
        "sbatch": ("--constraint=a100",),
    }
    text = script(PRIORS, **site)
    asked = options(text)
    assert (asked["partition"], asked["account"], asked["time"]) == ("gpu", "vision", "8:00:00")
    assert asked["signal"] == "B:USR1@300" and asked["constraint"] == "a100"
    lines = text.splitlines()
    command = 'run apptainer exec --nv l2l.sif python3 -m cli priors run r --worker "$task"'
    assert lines.index("module load cuda/12.8") < lines.index(command)
    assert next(line for line in lines if "HF_HUB_OFFLINE=1" in line).startswith("export ")


def test_jobs_look_into_the_cache_in_which_the_models_were_found():
    text = script(replace(PRIORS, hub_cache="/shared disk/hf"))
    assert "export HF_HUB_CACHE='/shared disk/hf'\n" in text
    assert "HF_HUB_CACHE" not in script(PRIORS)


def test_a_rendezvous_is_the_first_node_or_nothing():
    text = script(TRAINING)
    assert 'scontrol show hostnames "$SLURM_JOB_NODELIST"' in text and "no rendezvous" in text
    assert '--rdzv-backend=c10d \\\n  --rdzv-endpoint="$address:' in text
    assert "--nnodes=2 --nproc-per-node=4 --max-restarts=0" in text and "-m cli train r --set 'a=b c'" in text
    assert "localhost" not in text and "127.0.0.1" not in text


def test_usr1_is_ignored_within_a_container_too():
    text = script(TRAINING, container="apptainer exec --nv l2l.sif", python="python3")
    ignoring = """bash -c 'trap "" USR1; exec "$@"' container"""
    assert f"  apptainer exec --nv l2l.sif {ignoring} python3 -m torch.distributed.run \\\n" in text
    assert ignoring not in script(TRAINING)


@pytest.mark.parametrize("notice_s", [5, 30, 120, 600])
def test_what_does_not_stop_is_killed_step_by_step_within_the_notice(notice_s):
    text = script(TRAINING, notice_s=notice_s)
    found = re.findall(
        r"\(sleep (\d+) && .*--signal=TERM|SHUTDOWN_TIMEOUT=(\d+)|^ +sleep (\d+) &>", text, re.MULTILINE
    )
    (term_s,), (torchrun_s,), (kill_s,) = (
        [int(one) for one in group if one] for group in zip(*found, strict=True)
    )
    assert 0 < term_s < term_s + torchrun_s <= kill_s < notice_s
    assert f" sleep {kill_s} &>" in script(PRIORS, notice_s=notice_s)


@pytest.mark.parametrize("job", [PRIORS, TRAINING, VERIFY], ids=lambda job: job.name)
def test_bash_can_read_it(job):
    text = script(job, folder=Path("/jobs of mine/$HOME"))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("name", ["/50%", "/it's", '/a"b', "/a\nb", "relative"])
def test_a_folder_whose_name_slurm_would_change_is_refused(name):
    with pytest.raises(DataError, match="in a folder's name"):
        script(PRIORS, folder=Path(name))


PROGRAM = """\
#!/bin/bash
echo "$@" >"$(dirname "$0")/said"
echo "error: status $5" >&2
exit "$5"
"""


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_task_records_how_it_ended(tmp_path, status):
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    job = ClusterJob(name="ablate", command=("a b",), per_task=f'"$task" {status}', tasks=(7,))
    text = script_of(job, SiteConfig(), tmp_path, tmp_path, str(program))
    slurm = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "43"}
    done = subprocess.run(
        ["bash", "-c", text, "script", "5"], env={**os.environ, **slurm}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("== ablate, task 7: start 1 on ")
    assert (tmp_path / "said").read_text() == f"-m cli a b 7 {status}\n"
    record = json.loads((tmp_path / "ablate.7.json").read_text())
    assert (record["job"], record["state"], record["status"]) == ("41", "ended", status)
    assert (record["restarts"], record["log"]) == (0, "ablate.41_2.log")


def test_a_line_of_setup_that_fails_is_named_and_nothing_is_run(tmp_path):
    site = SiteConfig(setup=("true", "modul load cuda/12.8", "touch after"))
    text = script_of(VERIFY, site, tmp_path, tmp_path, "/no/python")
    environment = {**os.environ, "SLURM_JOB_ID": "43"}
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 127 and "modul: command not found" in done.stderr
    assert done.stderr.endswith("error: this line of setup in cluster.toml failed: modul load cuda/12.8\n")
    assert json.loads((tmp_path / "verify.0.json").read_text())["status"] == 127
    assert not (tmp_path / "after").exists() and "/no/python" not in done.stderr


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_task_told_to_stop_before_its_command_has_begun_is_queued_again(tmp_path, name):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" >>"$0.said"\n')
    scontrol.chmod(0o755)
    site = SiteConfig(setup=(f"kill -{name} $$", "touch after"))
    text = script_of(VERIFY, site, tmp_path, tmp_path, "/no/python")
    environment = {**os.environ, "SLURM_JOB_ID": "43", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == STOPPED and done.stderr == ""
    record = json.loads((tmp_path / "verify.0.json").read_text())
    assert (record["state"], record["status"]) == ("ended", STOPPED)
    assert (scontrol.parent / "scontrol.said").read_text().splitlines()[-1] == "requeue 43"
    assert not (tmp_path / "after").exists()


def test_arrays_stay_below_the_largest_index():
    assert array_chunks(range(5), 1001) == [(0, "0-4")]
    assert array_chunks([0, 1, 2, 4, 9], 1001) == [(0, "0-2,4,9")]
    assert array_chunks([0, 999, 1000, 1001, 2500], 1001) == [(0, "0,999-1000"), (1001, "0"), (2002, "498")]
    assert array_chunks([], 1001) == []


@given(st.sets(st.integers(0, 500)), st.integers(2, 50))
def test_no_task_is_dropped_or_doubled(tasks, size):
    found = []
    for offset, indices in array_chunks(sorted(tasks), size):
        for part in indices.split(","):
            first, _, last = part.partition("-")
            assert 0 <= int(first) <= int(last or first) < size
            found += [offset + index for index in range(int(first), int(last or first) + 1)]
    assert found == sorted(tasks)
