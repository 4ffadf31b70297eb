"""Build the documentation site, and check that it needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="the documentation is built with the extra 'docs'")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^\s\">]+")
    found = {page.name: loaded.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert {name: links for name, links in found.items() if links} == {}
    assert [
        style.name for style in site.rglob("*.css") if re.search(r"url\(\"?https?:", style.read_text("utf-8"))
    ] == []


def test_notebooks_and_examples_are_on_the_site(site: Path) -> None:
    assert "Calibrate a mesh" in (site / "examples" / "notebooks" / "calibrate-a-mesh.html").read_text("utf-8")
    assert (site / "examples" / "driver-template").is_dir()
    assert (site / "examples" / "firmware" / "chip.hpp").is_file()


def test_links_out_of_docs_are_rewritten(site: Path) -> None:
    drivers = (site / "drivers.html").read_text(encoding="utf-8")
    assert "../examples" not in drivers
    assert 'href="examples/firmware/' in drivers
