"""Render self-contained pages: verdicts first, then plots, then the details."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.errors import ConfigurationError
from ..devices.files import write_file
from .plots import as_png, prepare

__all__ = ["Verdict", "draw", "render", "write_report"]


class Verdict(NamedTuple):
    """Summarise one result in a sentence.

    Attributes:
        text: the sentence.
        kind: how good the result is.
    """

    text: str
    kind: Literal["good", "plain", "warning", "bad"] = "plain"


def render(
    template: str, title: str, verdicts: Sequence[Verdict], pictures: Mapping[str, bytes], **values: Any
) -> bytes:
    """Render a self-contained page as the content of a file.

    Args:
        template: name of the template, without ``.html.j2``.
        title: title of the page.
        verdicts: sentences at the top of the page.
        pictures: plots as PNG by name.
        **values: values for the rest of the template.
    """
    environment = Environment(loader=PackageLoader("astralora", "reports"), autoescape=True, trim_blocks=False)
    page = environment.get_template(f"{template}.html.j2").render(
        title=title,
        verdicts=verdicts,
        pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        **values,
    )
    return page.encode()


def draw(paint: Callable[[Axes], None]) -> bytes:
    """Return one plot as PNG, drawn by a function of axes."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.add_subplot()
    prepare(ax)
    paint(ax)
    return as_png(figure)


def write_report(path: Path, page: bytes) -> None:
    """Write a page atomically.

    Raises:
        ConfigurationError: the page cannot be written.
    """
    write_file(path, page, "the report", error=ConfigurationError)
