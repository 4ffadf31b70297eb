"""A small language model, and bytes of text for it: what benchmarks of low-rank training have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import cos, pi

import torch
from torch import Tensor, nn

from ..common.extras import require
from ..devices import derive_generator, derive_seed
from ..tasks import BYTES

__all__ = ["BATCH", "evaluate", "make_opt", "mean_loss", "stretches", "warmed_cosine"]

_LENGTH = 64  # bytes that the model sees at once
BATCH = 16
"""Stretches of text that a step is made from."""
_EVALUATION = 512  # stretches that a loss is the mean of


def make_opt(width: int, layers: int, seed: int) -> nn.Module:
    """OPT (Zhang et al., arXiv 2205.01068) of random weights, as transformers builds it from a configuration."""
    transformers = require("transformers", "a language model", extra="lowrank")
    config = transformers.OPTConfig(
        vocab_size=BYTES,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        max_position_embeddings=2 * _LENGTH,
        dropout=0.0,  # which would draw from the global generator; a text is hardly seen twice
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        model: nn.Module = transformers.OPTForCausalLM(config)
    return model


def stretches(tokens: Tensor, batches: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random stretches of text, and the same one byte on: (size, length) each."""
    generator = derive_generator(seed, "bench", "lowrank")
    for _ in range(batches):
        starts = torch.randint(len(tokens) - _LENGTH, (size, 1), generator=generator)
        stretch = tokens[starts + torch.arange(_LENGTH + 1)]
        yield stretch[:, :-1], stretch[:, 1:]


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of what comes next, in nats a byte."""
    logits = model(input_ids=inputs).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor) -> float:
    """Mean loss on the same stretches for every model, in nats a byte."""
    losses = [mean_loss(model, *pair) for pair in stretches(tokens, _EVALUATION // 64, 64, seed=0)]
    return float(torch.stack(losses).mean())


def warmed_cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """Share of the learning rate at each step, counted from 0: a line up, and a cosine down to nothing."""
    return lambda step: min((step + 1) / warmup, (1 + cos(pi * step / steps)) / 2)
