"""Make tiny transformers with random weights, or load others with the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices import derive_seed
from ..devices.validation import printable
from .random_state import isolated_random_state
from .tokens import SPECIAL_TOKENS, VOCABULARY

__all__ = ["TINY", "Objective", "load_model", "max_length"]

Objective = Literal["causal", "masked", "classification"]
"""What a model is trained to predict: the next token, hidden tokens, or the label of a text."""

_AUTO = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
}

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 514,
    **SPECIAL_TOKENS,
}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-opt": ("opt", {**_SMALL, "word_embed_proj_dim": 32, "ffn_dim": 128, "dropout": 0.0}),
    "tiny-roberta": (
        "roberta",
        {**_SMALL, "intermediate_size": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "tiny-gemma": ("gemma", {**_SMALL, "intermediate_size": 128, "num_key_value_heads": 1, "head_dim": 16}),
}
"""Models with random weights by name: their type in transformers, and their configuration."""


def load_model(
    name: str, objective: Objective, *, labels: int = 2, options: dict[str, Any] | None = None, seed: int = 0
) -> nn.Module:
    """Make or load a transformer in float32.

    Args:
        name: one of `TINY`, made from its configuration; the folder of a saved model; or a name on the hub.
        objective: objective of the training, which determines the head.
        labels: number of classes; 1 if the label is a number.
        options: options that replace those of the model's configuration.
        seed: seed of all new weights.

    Raises:
        ConfigurationError: transformers is not installed, or the model cannot be made or loaded.
    """
    transformers = require("transformers", "'astralora adapters'", extra="lowrank")
    if objective not in get_args(Objective):
        raise ConfigurationError(f"objective must be one of {', '.join(get_args(Objective))}, not {objective!r}")
    kind = getattr(transformers, _AUTO[objective])
    overrides: dict[str, Any] = dict(options or {})
    if objective == "classification":
        overrides["num_labels"] = labels
    with isolated_random_state(derive_seed(seed, "model")):
        try:
            if name in TINY:
                model = _make_tiny(transformers, kind, name, overrides)
            else:
                # Weights are read from safetensors alone, since other formats are unpickled.
                safe = {"use_safetensors": True, "trust_remote_code": False}
                model = kind.from_pretrained(name, dtype="float32", **safe, **overrides)
        except ConfigurationError:
            raise
        # The libraries below have no common base class for errors of damaged files.
        except Exception as error:
            raise ConfigurationError(_failure(name, error)) from None
    config: Any = model.config
    if objective == "causal" and _family(model) in ("bert", "roberta") and not config.is_decoder:
        raise ConfigurationError(
            f"the model {name!r} uses the tokens after a position, and thus cannot learn to predict the next token; "
            f"choose the objective 'masked'"
        )
    return model


def max_length(model: nn.Module) -> int | None:
    """Return the largest number of tokens of a text, or None if the model's positions do not limit it."""
    config: Any = model.config
    match _family(model):
        case "opt" | "bert":
            return int(config.max_position_embeddings)
        case "roberta":
            return int(config.max_position_embeddings) - int(config.pad_token_id) - 1  # positions start after padding
    return None


def _make_tiny(transformers: Any, kind: Any, name: str, overrides: dict[str, Any]) -> nn.Module:
    family, defaults = TINY[name]
    config = transformers.AutoConfig.for_model(family)
    for option in overrides:
        if not hasattr(config, option):  # transformers would accept and ignore it
            raise ConfigurationError(f"model.options.{option} is not known to models of {family}")
    model: nn.Module = kind.from_config(transformers.AutoConfig.for_model(family, **{**defaults, **overrides}))
    return model


def _family(model: nn.Module) -> str:
    return str(getattr(model.config, "model_type", ""))


def _failure(name: str, error: Exception) -> str:
    reason = printable(str(error).strip().partition("\n")[0].rstrip(".")) or type(error).__name__
    if name in TINY or Path(name).exists():
        return f"the model {name!r} cannot be made: {reason}"
    return (
        f"the model {name!r} cannot be loaded: {reason}; without a network, give the folder of a saved model, or one "
        f"of {', '.join(TINY)}"
    )
