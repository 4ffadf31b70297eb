"""Provide a small language model, its training data, and the choice of learning rates for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices import derive_generator, derive_seed
from ..tasks import BYTES

__all__ = [
    "BATCH",
    "TUNING_SEED",
    "Record",
    "check_width",
    "evaluate",
    "make_opt",
    "mean_loss",
    "stretches",
    "tuned_runs",
    "warmed_cosine",
]

Record = dict[str, Any]

_LENGTH = 64  # context length in bytes
BATCH = 16
"""Number of stretches of text in each step."""
_EVALUATION = 512  # stretches over which a loss is averaged
TUNING_SEED = 1_000_003
"""Seed of the runs that choose learning rates; no reported run has it."""


def check_width(width: int) -> None:
    """Refuse a width of the model that is not divisible by its number of attention heads.

    Raises:
        ConfigurationError: the width is no multiple of 16.
    """
    if width % 16:
        raise ConfigurationError(f"the model's width must be a multiple of 16, and {width} is not")


def tuned_runs(
    rates: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    measure: Callable[[str, float, int], Record],
    listener: Callable[[Record, int], None] | None = None,
) -> list[Record]:
    """Choose each method's learning rate on one seed, and run the method with the best rate on every seed.

    The best rate has the lowest ``validation_loss`` on `TUNING_SEED`.

    Args:
        rates: learning rates to try by method.
        seeds: seeds of the runs.
        measure: function of method, rate and seed that runs the method and returns the other fields of the record.
        listener: called with every record and the number of records in all.

    Returns:
        Records of part ("tuning" or "run"), method, seed, rate, and the fields from ``measure``.
    """
    total = sum(len(each) + len(seeds) for each in rates.values())
    records: list[Record] = []

    def run(part: str, name: str, rate: float, seed: int) -> Record:
        found = measure(name, rate, seed)
        records.append({"part": part, "method": name, "seed": seed, "rate": rate, **found})
        if listener is not None:
            listener(records[-1], total)
        return records[-1]

    for name, each in rates.items():
        tried = [run("tuning", name, rate, TUNING_SEED) for rate in each]
        best = min(tried, key=lambda record: record["validation_loss"])["rate"]
        for seed in seeds:
            run("run", name, best, seed)
    return records


def make_opt(width: int, layers: int, seed: int) -> nn.Module:
    """Make an OPT (Zhang et al., arXiv 2205.01068) with random weights, as transformers builds it by default."""
    transformers = require("transformers", "a language model", extra="lowrank")
    config = transformers.OPTConfig(
        vocab_size=BYTES,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        max_position_embeddings=2 * _LENGTH,
        dropout=0.0,  # dropout would draw from the global generator, and hardly any text is repeated
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        model: nn.Module = transformers.OPTForCausalLM(config)
    return model


def stretches(tokens: Tensor, batches: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random stretches of text, and the same stretches shifted by one byte as targets: (size, length) each."""
    generator = derive_generator(seed, "bench", "lowrank")
    for _ in range(batches):
        starts = torch.randint(len(tokens) - _LENGTH, (size, 1), generator=generator)
        stretch = tokens[starts + torch.arange(_LENGTH + 1)]
        yield stretch[:, :-1], stretch[:, 1:]


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of the next byte, in nats per byte."""
    logits = model(input_ids=inputs).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor) -> float:
    """Return the mean loss on the same stretches for every model, in nats per byte."""
    losses = [mean_loss(model, *pair) for pair in stretches(tokens, _EVALUATION // 64, 64, seed=0)]
    return float(torch.stack(losses).mean())


def warmed_cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """Return the share of the learning rate at each step, counted from 0: a linear rise, then a cosine to 0."""
    return lambda step: min((step + 1) / warmup, (1 + cos(pi * step / steps)) / 2)
