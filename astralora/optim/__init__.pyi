"""Optimize with a small state: random projections of momentum and of accumulated gradients."""

from .accelerator import FloraAccelerator
from .compressor import GradCompressor
from .flora import Flora
from .fused import FusedBackward, StepsParameters, fuse_backward
from .memory import state_bytes
from .options import DivergingMomentumWarning
from .projection import PROJECTIONS, Projection
from .quantization import STORAGES

__all__ = [
    "PROJECTIONS",
    "STORAGES",
    "DivergingMomentumWarning",
    "Flora",
    "FloraAccelerator",
    "FusedBackward",
    "GradCompressor",
    "Projection",
    "StepsParameters",
    "fuse_backward",
    "state_bytes",
]
