"""Optimize with a small state: random projections of momentum and of accumulated gradients."""

# The names in the stub beside this file are imported at first use: the accelerator needs an optional library.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
