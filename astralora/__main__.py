"""``python -m astralora``: the command line."""

from .cli.app import main

main()
