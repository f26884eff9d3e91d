import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def slurm(request):
    """A cluster for one file of tests; `indirect` with False leaves `RequeueExit` out of its configuration."""
    folder = Path(tempfile.mkdtemp(prefix="l2l-slurm-"))
    folder.chmod(0o755)  # its daemons want to reach their sockets
    cluster = Slurm(folder, requeue_exit=getattr(request, "param", True))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    shutil.rmtree(folder)  # kept, with the logs of the daemons, where they do not stop


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A cluster without GPUs."""
    file = tmp_path_factory.mktemp("site") / "cluster.toml"
    file.write_text('gpus_per_node = 0\ncpus_per_process = 1\ntime = "0:30:00"\n')
    return file


@pytest.fixture
def l2l(slurm):
    """Run the command line as a user of the cluster, and read its answer."""

    def call(*arguments):
        environment = {**slurm.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "cli", *map(str, arguments), "--json"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return call
