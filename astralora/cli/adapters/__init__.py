"""Provide ``astralora adapters``, which trains, scores and chooses low-rank adapters of transformers."""

import typer

from ..command import add_command
from .evaluate import evaluate
from .score import score
from .search import search
from .train import train

__all__ = ["adapters"]

# The commands import what they need when they run, because transformers takes longer to import than all of astralora.
adapters = typer.Typer(help="Train, score and choose low-rank adapters of transformers.", no_args_is_help=True)
add_command(adapters, train)
add_command(adapters, evaluate, "test")
add_command(adapters, score)
add_command(adapters, search)
