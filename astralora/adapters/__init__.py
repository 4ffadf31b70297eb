"""Choose which low-rank adapters and device layers get a limited budget (HeteroLoRA)."""

# The names in the stub beside this file are imported at first use, since most modules need transformers and peft.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
