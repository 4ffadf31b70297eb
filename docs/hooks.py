"""Add the pages outside of docs/ to the site: notebooks, examples, and the project's own pages."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root, the files in examples/, and each notebook as a page."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in sorted((ROOT / "examples").rglob("*")):
        source = path.relative_to(ROOT).as_posix()
        if not path.is_file() or "/build/" in source or "/." in source or "__pycache__" in source:
            continue
        files.append(File.generated(config, source, abs_src_path=str(path)))
        if path.suffix == ".ipynb":
            page = source.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, page, content=notebook_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    here = page.file.src_uri
    in_repository = here if not (ROOT / "docs" / here).is_file() else f"docs/{here}"

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), match[1]))
        if (ROOT / target).is_dir():
            target += "/README.md"
        target = target.removeprefix("docs/")
        as_page = target.removesuffix(".ipynb") + ".md" if not here.startswith("examples/") else target
        target = as_page if files.get_file_from_path(as_page) else target
        if not files.get_file_from_path(target):
            return match[0]
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{match[2] or ''})"

    return _LINK.sub(rewritten, markdown)


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: its text, its code, and a link to the file."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = parts
    return "\n\n".join([title, f"[Download the notebook]({path.name})", *rest]) + "\n"
