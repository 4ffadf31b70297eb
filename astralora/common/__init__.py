"""Provide the error class, the table of named classes, and the import of optional libraries for all packages."""
