"""The ``astralora`` command."""
