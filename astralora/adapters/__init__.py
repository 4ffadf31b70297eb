"""HeteroLoRA: which low-rank adapters, and which device layers, deserve the budget."""

# What the stub beside this file names is imported when it is used: most of it stands on transformers and peft.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
