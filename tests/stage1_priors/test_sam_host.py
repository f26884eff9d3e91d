"""SAM in a process of its own: the same masks, and no silent end of either process."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from shared.config import apply_overrides
from shared.errors import DataError
from shared.seeding import rng
from shared.store.reader import PriorStore
from stage1_priors import proposers
from stage1_priors.config import ProposerConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.proposers import PROPOSERS, Prompts
from stage1_priors.run import run_priors
from stage1_priors.sam_host import SamApart, SamHere
from tests.stage1_priors.fake_engine import FakeEngine
from tests.stage1_priors.sam_folders import save_random_sam2

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random_sam2(tmp_path_factory.mktemp("sam") / "sam2")


@pytest.fixture(scope="module")
def apart(folder):
    proposer = SamApart(ProposerConfig(kind="sam2", path=str(folder), grid=16), folder)
    proposer.load()
    yield proposer
    proposer.close()


def prompts_of(num):
    draw = rng("sam host", num)
    images = [Image.fromarray(draw.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(num)]
    corner = draw.uniform(0, 0.5, (2 * num, 2))
    boxes = np.concatenate([corner, corner + draw.uniform(0.2, 0.5, (2 * num, 2))], 1).astype(np.float32)
    boxes[-1] = np.nan
    return Prompts(
        box_norm_B4=boxes,
        edges_B=((np.ones(3),) * 4,) * (2 * num),
        names_B=tuple(f"{row // 2}.jpg" for row in range(2 * num)),
        images_B=tuple(images[row // 2] for row in range(2 * num)),
    )


def test_masks_are_those_of_this_process(apart, folder):
    here = SamHere(ProposerConfig(kind="sam2", path=str(folder), grid=16), folder)
    here.load()
    for num in (1, 5):
        ours, theirs = here.propose(prompts_of(num)), apart.propose(prompts_of(num))
        assert np.abs(ours.map_BGG.astype(int) - theirs.map_BGG).max() <= 1  # other threads, other sums
        np.testing.assert_allclose(ours.iou_B, theirs.iou_B, atol=1e-5)
        assert theirs.candidates_BMGG is None and len(np.unique(theirs.map_BGG)) > 3
    here.close()


def test_it_has_as_many_threads_as_asked_for(folder):
    code = (
        "import sys, torch; from pathlib import Path; from stage1_priors.config import ProposerConfig\n"
        "from stage1_priors.sam_host import _loaded\n"
        "for asked in ({}, {'threads': 3}):\n"
        "    _loaded(ProposerConfig(kind='sam2', **asked), Path(sys.argv[1])); print(torch.get_num_threads())\n"
    )
    told = [sys.executable, "-c", code, str(folder)]
    own = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(told, cwd=REPOSITORY, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "3"]


def test_what_goes_wrong_there_is_said_here_and_is_not_the_end(apart):
    with pytest.raises(DataError, match=r"SAM failed on 0.jpg: .*Finished shards are kept"):
        apart.propose(dataclasses.replace(prompts_of(1), images_B=("no image",) * 2))
    assert apart.propose(prompts_of(1)).map_BGG.shape == (2, 16, 16)


def test_weights_that_do_not_cover_the_model_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    proposer = SamApart(ProposerConfig(kind="sam2", path=str(tmp_path)), tmp_path)
    with pytest.raises(DataError, match="lack 1 tensors of Sam2Model, first mask_decoder.iou_token.weight"):
        proposer.load()
    proposer.close()


def test_it_runs_apart_where_there_is_no_gpu(folder, monkeypatch):
    started = []
    monkeypatch.setattr("stage1_priors.sam_host.SamApart", lambda *told: started.append(told))
    for gpus, asked, want in (([], None, 1), (["0"], None, 0), (["0"], True, 1), ([], False, 0)):
        monkeypatch.setattr(proposers, "visible_gpus", lambda gpus=gpus: gpus)
        started.clear()
        PROPOSERS["sam2"].make(ProposerConfig(kind="sam2", path=str(folder), own_process=asked), folder)
        assert len(started) == want, (gpus, asked)


def test_a_run_whose_sam_is_killed_says_so_and_goes_on_later(config, folder, monkeypatch):
    chosen = apply_overrides(
        config, [f"proposer.path={folder}", "proposer.kind=sam2", "proposer.own_process=true"]
    )
    calm = apply_overrides(chosen, [f"cache_root={config.cache_root}-calm"])
    undisturbed = PriorStore(run_priors(calm, engine_factory=FakeEngine().factory, quiet=True))
    propose = SamApart.propose

    def killed_late(self, prompts):
        if (PriorStore(describe_plan(chosen)["store"])).done_shards == [0]:
            os.kill(self._process.pid, signal.SIGKILL)
        return propose(self, prompts)

    with monkeypatch.context() as patched:
        patched.setattr(SamApart, "propose", killed_late)
        with pytest.raises(DataError, match="SAM's process was killed by signal 9. Finished shards are kept"):
            run_priors(chosen, engine_factory=FakeEngine().factory, quiet=True)
    path = describe_plan(chosen)["store"]
    assert PriorStore(path).done_shards == [0]
    assert str(run_priors(chosen, engine_factory=FakeEngine().factory, quiet=True)) == path
    store = PriorStore(path)
    store.require_complete()
    for name in store.fields:
        np.testing.assert_array_equal(store.column(name), undisturbed.column(name), err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_it_ends_by_the_run_alone(apart, number):
    """Slurm and a terminal tell every process of a job; the run has masks to make before it ends."""
    os.kill(apart._process.pid, number)
    assert apart.propose(prompts_of(1)).map_BGG.shape == (2, 16, 16)


def test_it_does_not_outlive_a_killed_run(folder):
    code = (
        "import sys, time; from pathlib import Path; from stage1_priors.config import ProposerConfig\n"
        "from stage1_priors.sam_host import SamApart\n"
        "folder = Path(sys.argv[1])\n"
        "sam = SamApart(ProposerConfig(kind='sam2', path=str(folder)), folder); sam.load()\n"
        "print(sam._process.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "SAM's process is still there"
        time.sleep(0.1)
