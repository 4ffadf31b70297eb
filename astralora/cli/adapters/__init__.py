"""``astralora adapters``: which low-rank adapters of a transformer deserve the budget?"""

import typer

from .evaluate import evaluate
from .score import score
from .search import search
from .train import train

__all__ = ["adapters"]

# What these commands stand on is imported in them: transformers takes longer than all of astralora.
adapters = typer.Typer(help="Train low-rank adapters of transformers where they matter.", no_args_is_help=True)
adapters.command()(train)
adapters.command("test")(evaluate)
adapters.command()(score)
adapters.command()(search)
