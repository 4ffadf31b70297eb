"""Errors, tables of named classes, and optional libraries: what every package uses."""
