"""Optimizers whose state is small: random projections of moments and of accumulated gradients."""

# What the stub beside this file names is imported when it is used: the accelerator stands on a library of its own.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
