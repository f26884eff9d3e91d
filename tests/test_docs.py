"""Every command in the documentation exists: its name, its options, its recipe and the fields that `--set` names."""

import dataclasses
import re
import shlex
import typing
from pathlib import Path

import pytest
import typer

import cli
from shared.config import DataConfig
from stage1_priors.recipes import RECIPES as PRIORS_RECIPES
from stage2_train.recipes import RECIPES as TRAIN_RECIPES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "shared/own-photos.md",
    "stage1_priors/real-models.md",
    "shared/cluster/README.md",
    "stage2_train/comparing-runs.md",
    "cache/README.md",
    "stage1_priors/README.md",
    "stage1_priors/families/README.md",
    "stage2_train/methods/README.md",
    "stage2_train/grids/README.md",
    "tests/bench/README.md",
]
COMMAND = re.compile(r"(?:\bl2l|\bcli\.py) ([a-z][^`\n]*)")


def commands(text: str) -> list[list[str]]:
    """Words after `l2l` of every command in code spans and blocks; optional parts count as given."""
    blocks = re.findall(r"```[^\n]*\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    code = "\n".join([*blocks, *spans]).replace("\\\n", " ")
    return [shlex.split(re.sub(r"[\[\];]", " ", found)) for found in COMMAND.findall(code)]


def faults(words: list[str]) -> list[str]:
    """What of a command does not exist."""
    command: typing.Any = typer.main.get_command(cli.app)
    path, rest = [], list(words)
    while hasattr(command, "commands"):
        if not rest:
            return []  # `l2l priors` alone names a group
        name = rest.pop(0)
        path.append(name)
        if name not in command.commands:
            return [f"no command {' '.join(path)!r}"]
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    given = [word.partition("=")[0] for word in rest if word.startswith("-")]
    found = [f"{' '.join(path)} has no option {option}" for option in given if option not in known]
    recipes = {"priors run": PRIORS_RECIPES, "train": TRAIN_RECIPES, "params": TRAIN_RECIPES}.get(
        " ".join(path)
    )
    if (
        recipes is None
        or not rest
        or rest[0].startswith("-")
        or "<" in rest[0]
        or "/" in rest[0]
        or rest[0].isupper()
    ):
        return found
    if rest[0] not in recipes:
        return [*found, f"{' '.join(path)}: no recipe {rest[0]!r}"]
    config = recipes[rest[0]]()
    settings = [after for word, after in zip(rest, rest[1:], strict=False) if word == "--set"]
    return found + [f"{rest[0]} has no field {one!r}" for one in settings if not has_field(config, one)]


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them of their words."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def dead_links(page: Path) -> list[str]:
    """Links and pictures of a page that lead to no file, or to no heading of the page they name."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        aim = page.parent / name if name else page
        if not aim.is_file() or (anchor and anchor not in anchors(aim.read_text("utf-8"))):
            dead.append(target)
    return dead


def has_field(config: typing.Any, setting: str) -> bool:
    """Whether `a.b` of `a.b=c` is a field of the config."""
    for name in setting.partition("=")[0].split("."):
        if not dataclasses.is_dataclass(config) or name not in {f.name for f in dataclasses.fields(config)}:
            return False
        config = getattr(config, name)
    return not dataclasses.is_dataclass(config)


@pytest.mark.parametrize("page", PAGES)
def test_every_documented_command_exists(page):
    found = commands((ROOT / page).read_text("utf-8"))
    assert found, "the page names no command at all"
    assert [(words, problem) for words in found for problem in faults(words)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert dead_links(ROOT / page) == []


def test_pages_can_be_reached_from_the_readme():
    reached, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)", (ROOT / page).read_text("utf-8")):
            aim = (ROOT / page).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
            if aim not in reached:
                todo.append(aim)
    others = {page for page in reached - set(PAGES) if commands((ROOT / page).read_text("utf-8"))}
    assert set(PAGES) <= reached and not others, "a page with commands is not in PAGES"


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: c\n[x](#a-b-c) [y](#d) [z](none.md) [web](https://example.org/a#b) ![p](page.md)\n"
    )
    assert dead_links(page) == ["#d", "none.md"]


def test_every_command_is_in_the_readme():
    group: typing.Any = typer.main.get_command(cli.app)
    names = set()
    for name, command in group.commands.items():
        names |= {f"{name} {sub}" for sub in getattr(command, "commands", ())} or {name}
    text = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in sorted(names) if f"`l2l {name}" not in text] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`l2l prior run x`", "no command 'prior'"),
        ("`l2l priors walk`", "no command 'priors walk'"),
        ("```\nl2l eval runs/x \\\n  --splits val\n```", "eval has no option --splits"),
        ("`l2l report RUN [--into FILE]`", "report has no option --into"),
        ("`l2l train embeded`", "train: no recipe 'embeded'"),
        ("`l2l train embedded --set optim.rate=1`", "embedded has no field 'optim.rate=1'"),
    ],
)
def test_the_check_finds_what_is_wrong(text, said):
    assert [problem for words in commands(text) for problem in faults(words)] == [said]


def test_the_check_knows_settings():
    assert has_field(DataConfig(root="r", dataset="d"), "root=x") and not has_field(
        DataConfig(root="r", dataset="d"), "x=1"
    )
