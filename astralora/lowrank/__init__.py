"""Train in orthogonal bases that settle early (OIALR), and detect that bases have settled."""

# The names in the stub beside this file are imported at first use.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
