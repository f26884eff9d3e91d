"""What is handed to sbatch, what is kept of it, and the same work without Slurm."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from shared.cluster import submit as module
from shared.cluster.script import ClusterJob
from shared.cluster.site import SiteConfig
from shared.cluster.submit import (
    Work,
    has_slurm,
    jobs_folder,
    run_here,
    sbatch_commands,
    scripts,
    submit,
    with_array_size,
)
from shared.errors import DataError

FILE = Path("/jobs/priors.sh")
ARRAY = ClusterJob(name="priors", command=("priors",), tasks=(0, 1, 3))
AFTER = ClusterJob(name="verify", command=("verify",), after_others=True)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A program of that name that numbers its calls, writes them down, and refuses the third."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "sbatch"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys\n"
        f"calls = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "with calls.open('a') as file:\n"
        "    print(json.dumps(sys.argv[1:]), file=file)\n"
        "number = len(calls.read_text().splitlines())\n"
        "slurms = {name: value for name, value in os.environ.items() if name.startswith('SLURM_')}\n"
        f"pathlib.Path({str(tmp_path / 'environment')!r}).write_text(json.dumps(slurms))\n"
        "if number == 3:\n"
        "    sys.exit('sbatch: error: invalid account: x\\nsbatch: error: Batch job submission failed')\n"
        "print(f'{100 + number};here')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def work(folder, *jobs, here=()):
    return Work(target=folder / "run", folder=folder / "run" / "jobs", jobs=jobs, here=here)


def test_files_are_beside_a_store_and_in_a_run():
    assert jobs_folder(Path("a/b.c.zarr")) == Path("a/b.c.jobs")
    assert jobs_folder(Path("runs/l2l-0.5")) == Path("runs/l2l-0.5/jobs")


def test_a_site_with_too_few_cores_for_readers_is_told_of(tmp_path):
    plain = Work(target=tmp_path, folder=tmp_path, jobs=(), here=(), notes=("other",))
    assert plain.notes_at(SiteConfig(cpus_per_process=1)) == ("other",)
    reading = replace(plain, readers=8)
    assert reading.notes_at(SiteConfig(cpus_per_process=9)) == ("other",)
    other, cores = reading.notes_at(SiteConfig(cpus_per_process=8))
    assert other == "other" and "cpus_per_process is 8" in cores and "be 9 in cluster.toml" in cores


def test_a_wide_array_is_several_calls_with_an_offset():
    calls = sbatch_commands(ARRAY, SiteConfig(max_array_size=2, max_running=8), FILE, [])
    assert [call[2:] for call in calls] == [
        ["--array=0-1%8", str(FILE)],
        ["--array=1%8", str(FILE), "2"],
    ]


def test_a_job_that_waits_for_others_is_dropped_when_they_fail():
    (call,) = sbatch_commands(AFTER, SiteConfig(), FILE, ["7", "8"])
    assert call[2:] == ["--dependency=afterok:7:8", "--kill-on-invalid-dep=yes", str(FILE)]
    assert sbatch_commands(AFTER, SiteConfig(), FILE, []) == [["sbatch", "--parsable", str(FILE)]]


def test_a_job_may_wait_for_those_of_an_earlier_submission():
    later = ClusterJob(name="train", command=("train",), after=("3", "4"))
    (call,) = sbatch_commands(later, SiteConfig(), FILE, ["7"])
    assert call[2:] == ["--dependency=afterok:3:4", "--kill-on-invalid-dep=yes", str(FILE)]


def test_jobs_are_submitted_in_order_and_written_down(sbatch, tmp_path):
    assert has_slurm()
    todo = work(tmp_path, ARRAY, AFTER)
    submitted = submit(todo, SiteConfig())
    assert [(one["name"], one["job"], one["tasks"]) for one in submitted] == [
        ("priors", "101", [0, 1, 3]),
        ("verify", "102", [0]),
    ]
    assert sbatch()[1][1:3] == ["--dependency=afterok:101", "--kill-on-invalid-dep=yes"]
    kept = [json.loads(line) for line in (todo.folder / "submitted.jsonl").read_text().splitlines()]
    assert [one["job"] for one in kept] == ["101", "102"] and kept[0]["submission"] == kept[1]["submission"]
    assert {path: path.read_text() for path in todo.folder.glob("*.sh")} == scripts(todo, SiteConfig())


def test_a_refusal_says_what_was_submitted_before(sbatch, tmp_path):
    with pytest.raises(
        DataError, match="invalid account: x; Batch .* failed .jobs submitted before it: 101, 102"
    ):
        submit(work(tmp_path, ARRAY, AFTER), SiteConfig(max_array_size=2))


def test_a_job_that_submits_another_hands_on_nothing_of_its_own(sbatch, tmp_path, monkeypatch):
    for name, value in {"SLURM_CONF": "/c", "SLURM_RESTART_COUNT": "7", "SLURM_CPU_BIND": "none"}.items():
        monkeypatch.setenv(name, value)
    submit(work(tmp_path / "a", AFTER), SiteConfig())
    outside = json.loads((tmp_path / "environment").read_text())
    assert outside == {"SLURM_CONF": "/c", "SLURM_RESTART_COUNT": "7", "SLURM_CPU_BIND": "none"}
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    submit(work(tmp_path / "b", AFTER), SiteConfig())
    assert json.loads((tmp_path / "environment").read_text()) == {"SLURM_CONF": "/c"}


def write_program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("said", "size"),
    [("MaxArraySize            = 3", 3), ("MaxJobCount = 9", 1001), ("MaxArraySize = 0", 1001)],
)
def test_slurm_says_how_wide_an_array_may_be(sbatch, tmp_path, said, size):
    write_program(tmp_path / "bin" / "scontrol", f"echo '{said}'")
    assert with_array_size(SiteConfig()).max_array_size == size
    assert with_array_size(SiteConfig(max_array_size=2)).max_array_size == 2
    assert len(submit(work(tmp_path, ARRAY), SiteConfig())) == (2 if size == 3 else 1)


def test_without_scontrol_it_is_the_default(sbatch):
    assert with_array_size(SiteConfig()).max_array_size == 1001


def test_the_same_work_is_not_submitted_twice_at_once(sbatch, tmp_path):
    """A job that has ended and another cluster's of the same number are no hindrance; a queue that is silent is one."""
    todo, squeue = work(tmp_path, ARRAY), tmp_path / "bin" / "squeue"
    script = todo.folder / "priors.sh"
    write_program(squeue, f"echo '101|0|COMPLETED|None|{script}'; echo '101|1|RUNNING|None|/other.sh'")
    assert submit(todo, SiteConfig())[0]["job"] == "101"
    assert submit(todo, SiteConfig())[0]["job"] == "102"
    write_program(squeue, f"echo '102|0|PENDING|None|{script}'; echo '102|1|RUNNING|None|{script}'")
    with pytest.raises(
        DataError, match=r"run: job 102 \(PENDING, RUNNING\) of an earlier submission would do the same"
    ):
        submit(todo, SiteConfig())
    assert len(sbatch()) == 2
    write_program(squeue, "echo 'squeue: error: Socket timed out' >&2; exit 1")
    with pytest.raises(DataError, match=r"jobs: squeue: .*Socket timed out; so it is not known whether jobs"):
        submit(todo, SiteConfig())
    assert len(sbatch()) == 2
    squeue.unlink()
    with pytest.raises(
        DataError, match="Batch job submission failed"
    ):  # the third call: nobody could be asked
        submit(todo, SiteConfig())


def test_of_two_submissions_at_the_same_moment_the_second_finds_the_jobs_of_the_first(sbatch, tmp_path):
    """A slow queue that knows whatever has been handed to sbatch by then."""
    todo = work(tmp_path, ARRAY)
    listed = f'while read job; do echo "$job|0|PENDING|None|{todo.folder}/priors.sh"; done <{tmp_path}/queue'
    write_program(tmp_path / "bin" / "sbatch", f"/bin/sleep 0.3; echo 101 >>{tmp_path}/queue; echo 101")
    write_program(tmp_path / "bin" / "squeue", listed)
    with ThreadPoolExecutor(2) as both:
        ends = [both.submit(submit, todo, SiteConfig()) for _ in range(2)]
        failed = [end.exception() for end in ends if end.exception()]
    assert (tmp_path / "queue").read_text() == "101\n"
    (error,) = failed
    assert isinstance(error, DataError) and "job 101 (PENDING) of an earlier submission" in str(error)


def test_the_answer_must_be_a_number(tmp_path, monkeypatch):
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho Submitted\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match="verify.sh: Submitted$"):
        module.submit(work(tmp_path, AFTER), SiteConfig())


@pytest.mark.parametrize("said", ["7;here", "project x: 3 of 9 hours left\\n12\\n 7 \\n\\nthank you"])
def test_what_a_site_says_besides_is_no_part_of_the_id(tmp_path, monkeypatch, said):
    write_program(tmp_path / "sbatch", f"printf '{said}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (one,) = submit(work(tmp_path, AFTER), SiteConfig())
    assert one["job"] == "7"


def test_without_slurm_the_processes_run_here_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_slurm()
    log = tmp_path / "log"
    steps = [("-c", f"open({str(log)!r}, 'a').write('{name}'); raise SystemExit({end})") for name, end in
             (("a", 0), ("b", 3), ("c", 0))]  # fmt: skip
    run_here(work(tmp_path, here=(steps[0], steps[2])))
    assert log.read_text() == "ac"
    with pytest.raises(SystemExit) as ended:
        run_here(work(tmp_path, here=tuple(steps)))
    assert ended.value.code == 3 and log.read_text() == "acab"
