"""Training in orthogonal bases that settle early: OIALR, and the signal that tells when bases have settled."""

# What the stub beside this file names is imported when it is used.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
