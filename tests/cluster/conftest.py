import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shared.synth.refshapes import write_refshapes
from tests.cluster.slurm import Slurm, missing_programs

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items):
    """Skip tests marked `slurm` where Slurm is not installed."""
    missing = missing_programs()
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"Slurm is not installed (missing: {', '.join(missing)})")
    for item in items:
        if item.get_closest_marker("slurm"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def cluster():
    """The cluster of all tests."""
    folder = Path(tempfile.mkdtemp(prefix="l2l-slurm-"))
    folder.chmod(0o755)  # its daemons want to reach their sockets
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    shutil.rmtree(folder)  # kept, with the logs of the daemons, where they do not stop


@pytest.fixture
def slurm(cluster):
    """The cluster, with an empty queue before and after."""
    yield cluster
    cluster.clear()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A site that gives no GPUs to its jobs."""
    file = tmp_path_factory.mktemp("site") / "cluster.toml"
    file.write_text('gpus_per_node = 0\ncpus_per_process = 1\ntime = "0:30:00"\n')
    return file


@pytest.fixture(scope="session")
def gpu_site(tmp_path_factory):
    """A site of nodes with two GPUs each."""
    file = tmp_path_factory.mktemp("site") / "cluster.toml"
    file.write_text('gpus_per_node = 2\ncpus_per_process = 1\ntime = "0:30:00"\n')
    return file


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Drawn scenes for stores of priors: about 1,570 sentences to train on, four shards."""
    root = tmp_path_factory.mktemp("drawn") / "data"
    write_refshapes(root, "refshapes", 310, 0, progress=False)
    return root


@pytest.fixture
def l2l(slurm):
    """Run the command line as a user of the cluster, and read its answer."""

    def call(*arguments, **variables):
        environment = {**slurm.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, "-m", "cli", *map(str, arguments), "--json"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return call
