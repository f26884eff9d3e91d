"""What the container's build copies is what set-up and the packages need; it is not built here."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_all_that_is_installed_is_copied():
    text = (ROOT / "shared/cluster/Containerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    modules = {f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]}
    assert copied == {"Makefile", "pyproject.toml", *project["project"]["license-files"], *modules, *packages}
