"""The shim acts on a CUDA torchvision beside CPU torch and on nothing else, and never stops Python."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from shared import torchvision_shim as shim

CUDA_TORCHVISION = "__version__ = '0.28.0+cu130'\ngit_version = 'a'\n"
PLAIN_TORCHVISION = "__version__ = '0.28.0'\ngit_version = 'a'\n"
CPU_TORCHVISION = "__version__ = '0.28.0+cpu'\n"
CPU_TORCH = "__version__ = '2.13.0+cpu'\ndebug = False\ncuda: Optional[str] = None\n"
CUDA_TORCH = "__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n"


@pytest.mark.parametrize(
    ("torchvision", "torch", "needed"),
    [
        (CUDA_TORCHVISION, CPU_TORCH, True),
        (CUDA_TORCHVISION, "__version__ = '2.13.0a0+git1'\ncuda: Optional[str] = None\n", True),
        (CUDA_TORCHVISION, CUDA_TORCH, False),
        (CUDA_TORCHVISION, "__version__ = '2.13.0+cu130'\n", False),
        (CPU_TORCHVISION, CPU_TORCH, False),
        (PLAIN_TORCHVISION, CPU_TORCH, False),
        (None, CPU_TORCH, False),
        (CUDA_TORCHVISION, None, False),
    ],
)
def test_when_it_is_needed(monkeypatch, torchvision, torch, needed):
    monkeypatch.setattr(shim, "version_text", {"torchvision": torchvision, "torch": torch}.get)
    assert shim.is_needed() is needed


def test_an_absent_package_has_no_version_text():
    assert shim.version_text("no_such_package_at_all") is None
    assert "__version__" in shim.version_text("torch")


def _fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture
def fake_site(tmp_path):
    """A folder with the copy, and a torch and a torchvision that record what is done to them."""
    (tmp_path / f"{shim.MODULE}.py").write_text(Path(shim.__file__).read_text())
    for name, version, body in (
        ("torch", CPU_TORCH.replace("Optional[str]", "object"), TORCH_BODY),
        (
            "torchvision",
            CUDA_TORCHVISION,
            "import torch\nassert torch.ops.torchvision.nms and torch.ops.torchvision.qnms",
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "version.py").write_text(version)
        (tmp_path / name / "__init__.py").write_text(body)
    return tmp_path


TORCH_BODY = """
class ops:
    class torchvision:
        pass
class library:
    class Library:
        def __init__(self, namespace, kind):
            assert (namespace, kind) == ("torchvision", "FRAGMENT")
        def define(self, schema):
            assert not hasattr(ops.torchvision, schema.partition("(")[0])
            setattr(ops.torchvision, schema.partition("(")[0], schema)
"""


def test_it_acts_on_import_and_not_before(fake_site):
    code = (
        f"import sys; sys.path.insert(0, {str(fake_site)!r}); sys.modules.pop({shim.MODULE!r}, None)\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'Finder']\n"
        f"import {shim.MODULE} as shim, importlib.util\n"
        "assert importlib.util.find_spec('torchvision') and 'torch' not in sys.modules\n"
        "import torchvision\n"
        "assert len(shim.libraries) == 1\nprint('done')"
    )
    done = _fresh(code)
    assert done.stdout.strip() == "done", done.stderr


def test_without_it_the_same_import_fails(fake_site):
    code = (
        f"import sys; sys.path.insert(0, {str(fake_site)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'Finder']\n"
        "import torchvision"
    )
    assert "no attribute 'nms'" in _fresh(code).stderr


def test_the_pth_line_is_one_line_that_passes_over_a_missing_copy():
    assert shim.PTH_TEXT.count("\n") == 1 and shim.PTH_TEXT.startswith("import ")
    line = shim.PTH_TEXT.replace(shim.MODULE, "_no_such_copy")
    done = _fresh(line + "print('up')")
    assert (done.stdout, done.stderr) == ("up\n", "")


def test_python_starts_without_torch():
    assert _fresh("import sys; print('torch' in sys.modules)").stdout == "False\n"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_can_be_imported_here_and_in_a_child():
    code = (
        "import subprocess, sys, torchvision.transforms.v2.functional\n"
        "subprocess.run([sys.executable, '-c', 'import torchvision; print(1)'], check=True)"
    )
    done = _fresh(code)
    assert done.stdout == "1\n", done.stderr
