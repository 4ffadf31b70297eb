"""Turn functions into commands of the command line."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperOption

from ..common.errors import ConfigurationError
from ..devices import DeviceError
from ..devices.validation import printable
from .choices import fill_in
from .console import errors
from .options import Debug
from .settings import ConfigOptions, default_of, top_keys

__all__ = ["add_command", "command"]

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_LONGEST = 2000  # characters of an error


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Prepare a function for the command line.

    A parameter whose type is a dataclass becomes one option for each field, and receives an object of that class.
    ``--debug`` is added. A `DeviceError` or a `ConfigurationError` is reported in one sentence with exit code 1, and
    with its traceback if ``--debug`` is given.
    """
    groups: dict[str, Any] = {}
    parameters = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += _parameters(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=_KEYWORD))
    parameters.append(inspect.Parameter("debug", _KEYWORD, default=False, annotation=Debug))

    @wraps(function)
    def run(**values: Any) -> None:
        debug = values.pop("debug")
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        try:
            function(**values)
        except (DeviceError, ConfigurationError) as error:
            if debug:
                raise
            _report(str(error))
            raise typer.Exit(1) from None
        except OSError as error:
            # Every file is written through sentences; what is left are disks that fail in the middle of a run.
            if debug or error.errno == errno.EPIPE:
                raise
            _report(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
            raise typer.Exit(1) from None

    signature = inspect.Signature(parameters)
    vars(run).update(__signature__=signature, option_groups=tuple(groups.values()))
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def add_command(app: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Add a function that `command` has prepared to an application."""
    app.command(name, cls=_Command)(function)


def _report(message: str) -> None:
    """Print an error in one line on standard error."""
    # The message may hold brackets, which are not markup, and characters that cannot be printed.
    errors.print("[bold red]error:[/]", Text(printable(" ".join(message.splitlines()), _LONGEST)), soft_wrap=True)


def _parameters(group: Any) -> list[inspect.Parameter]:
    """Return the parameters that set the fields of a dataclass."""
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            _KEYWORD,
            annotation=types[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(group)
    ]


class _Command(TyperCommand):
    """Print help that shows the names in tables and the defaults of the configuration."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an option that is given twice and has one value; click would use the last."""
        try:
            _, _, given = self.make_parser(ctx).parse_args(list(args))
        except Exception:
            given = []  # click reports the mistake below
        for option in given:
            if not isinstance(option, TyperOption) or option.multiple or option.count:
                continue
            # A flag without its opposite means the same twice.
            if (not option.is_flag or option.secondary_opts) and given.count(option) > 1:
                _report(f"{'/'.join(option.opts[:1] + option.secondary_opts)} is given twice; give it once")
                ctx.exit(1)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Complete the help texts and print them.

        Tables and configurations are imported here, because only help needs all of them.
        """
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        groups: tuple[type[Any], ...] = getattr(self.callback, "option_groups", ())
        options = next((group for group in groups if issubclass(group, ConfigOptions)), ConfigOptions)
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.name != "help":
                parameter.help = _help(parameter, options)
                parameter.show_default = False  # the help text contains it
        super().format_help(ctx, formatter)


def _help(option: TyperOption, options: type[ConfigOptions]) -> str:
    """Return the help text of an option with the names in tables and the default."""
    text = option.help or ""
    if "{keys}" in text:
        text = text.replace("{keys}", ", ".join(top_keys(options.model())))
    text = fill_in(text)
    default = default_of(options, str(option.name)) if option.default is None else option.default
    if default is None or default is False or option.required or "(default:" in text:
        return text
    # Spaces let a long list break at the end of a line.
    shown = "yes" if default is True else str(default).replace(",", ", ")
    return f"{text} (default: {shown})"
