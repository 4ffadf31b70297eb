"""Check links, anchors, commands and names on all pages."""

from __future__ import annotations

import re
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import typer.main

import astralora as al
from astralora.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]*))?\)")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the repository's site and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def shown_commands(page: Path) -> list[list[str]]:
    """Return the astralora commands of a page, each as its words after ``astralora``."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^(?:\.venv/bin/)?astralora (.+?)(?:\s+#.*)?$", text, flags=re.MULTILINE)
    shown += re.findall(r"`(?:\.venv/bin/)?astralora ([^`]+)`", text)
    return [command.split() for command in shown]


def find_command(words: list[str]) -> Any:
    """Return the command that these words lead to; fail where a word is not a command."""
    command: Any = typer.main.get_command(app)
    for word in words:
        children = getattr(command, "commands", None)
        if children is None or word.startswith("-"):
            break
        assert word in children, f"astralora {' '.join(words)}: known are {', '.join(children)}"
        command = children[word]
    return command


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    missing = []
    for target, anchor in LINK.findall(prose(page)):
        path = (page.parent / target) if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.append(f"{target}#{anchor}")
    assert missing == []


@every_page
def test_commands_exist(page: Path) -> None:
    for words in shown_commands(page):
        find_command(words)


@every_page
def test_options_exist(page: Path) -> None:
    unknown = []
    for words in shown_commands(page):
        command = find_command(words)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        unknown += [f"{option} of astralora {' '.join(words)}" for option in given - known - {"--help"}]
    assert unknown == []


@every_page
def test_make_targets_exist(page: Path) -> None:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)) <= {*known}


@every_page
def test_extras_exist(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r"\bastralora\[([a-z]+)\]", page.read_text(encoding="utf-8"))) <= {
        *project["optional-dependencies"]
    }


def test_the_reference_lists_the_names_at_the_top() -> None:
    page = (ROOT / "docs" / "reference" / "astralora.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\[`al\.(\w+)`\]", page))
    assert listed == set(al.__all__) - {"__version__"}
    packages = {name for name in al.__all__ if isinstance(getattr(al, name), types.ModuleType)}
    assert {name for name in packages if not (ROOT / "docs" / "reference" / f"{name}.md").is_file()} == set()
