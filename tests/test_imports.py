"""Who may import whom: cli -> {stage1_priors, stage2_train} -> shared, and `import cli` loads nothing heavy.

The rule is checked on the syntax tree, so an import inside a function counts as well; it is checked, too, that the
checker finds a breach.
"""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "shared": {"cli", "stage1_priors", "stage2_train", "tests"},
    "stage1_priors": {"cli", "stage2_train", "tests"},
    "stage2_train": {"cli", "stage1_priors", "tests"},
}
"""Top-level packages that a package must not import."""

COMMANDS = {"cli": "cli.py"} | {
    name: f"{name.replace('.', '/')}.py"
    for name in (
        "shared.console",
        "shared.data_commands",
        "stage1_priors.commands",
        "stage2_train.cluster_commands",
        "stage2_train.commands",
    )
}
LIGHT = {"typer", *sys.stdlib_module_names, "shared.errors", *COMMANDS}
"""What the command line may import outside its functions."""


def imported_modules(source: str, package: str = "") -> list[tuple[int, str]]:
    """(line, dotted module) of every import in `source`, wherever it stands; relative ones are made absolute."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.append((node.lineno, ".".join([*parts, *([node.module] if node.module else [])])))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.append((node.lineno, argument.value))
    return found


def breaches(source: str, package: str) -> list[str]:
    """Imports in `source`, a module of `package` (dotted), that the rule forbids."""
    forbidden = FORBIDDEN[package.split(".")[0]]
    return [
        f"line {line}: {name}"
        for line, name in imported_modules(source, package)
        if name.split(".")[0] in forbidden
    ]


def top_level_imports(source: str) -> list[str]:
    """Dotted modules that importing `source` itself imports: those outside functions."""
    tree = ast.parse(source)
    statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return [name for node in statements for _, name in imported_modules(ast.unparse(node))]


def _sources():
    for top in FORBIDDEN:
        for path in sorted((ROOT / top).rglob("*.py")):
            yield path, ".".join(path.relative_to(ROOT).parent.parts)


def test_there_are_sources_to_check():
    tops = {package.split(".")[0] for _, package in _sources()}
    assert tops == set(FORBIDDEN)


def test_no_package_imports_what_it_must_not():
    found = {str(path.relative_to(ROOT)): breaches(path.read_text(), package) for path, package in _sources()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("stage2_train.methods", "from stage1_priors.plan import Plan"),
        ("stage1_priors", "def late():\n    import stage2_train.train as t"),
        ("shared.store", "from stage1_priors import config"),
        ("shared", "import json, cli"),
        ("stage2_train", "from tests import helper"),
        ("stage1_priors", "import importlib\nimportlib.import_module('stage2_train.spm')"),
    ],
)
def test_the_checker_finds_a_breach(package, source):
    assert len(breaches(source, package)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("stage2_train.methods", "from stage2_train import spm\nfrom shared.masks import encode_rle"),
        ("stage1_priors", "from . import plan\nfrom .families import qwen2_5_vl"),
        ("shared", "import torch"),
    ],
)
def test_the_checker_lets_the_rest_through(package, source):
    assert breaches(source, package) == []


def test_relative_imports_are_resolved():
    found = imported_modules("from . import a\nfrom ..x import b", "stage2_train.methods")
    assert [name for _, name in found] == ["stage2_train.methods", "stage2_train.x"]


@pytest.mark.parametrize("file", COMMANDS.values())
def test_the_command_line_imports_only_light_modules_at_its_top(file):
    names = top_level_imports((ROOT / file).read_text())
    assert "typer" in names
    assert [name for name in names if not {name, name.split(".")[0]} & LIGHT] == []


def test_importing_cli_loads_nothing_heavy():
    heavy = ("torch", "vllm", "zarr", "transformers", "numpy", "h5py", "tqdm", "torchvision")
    code = f"import sys, cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_list_is_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {package for path, package in _sources() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(there)


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path, _ in _sources()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
