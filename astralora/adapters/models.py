"""Transformers to adapt: tiny ones from a configuration, or whatever transformers can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices import derive_seed
from .adapted import undisturbed_random_state
from .tokens import SPECIAL_TOKENS, VOCABULARY

__all__ = ["TINY", "Objective", "load_model", "positions"]

Objective = Literal["causal", "masked", "classification"]
"""What a model learns: the next token, hidden tokens, or the label of a text."""

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
"""Models of random weights by name: their type in transformers, and their configuration."""


def load_model(
    name: str, objective: Objective, *, labels: int = 2, options: dict[str, Any] | None = None, seed: int = 0
) -> nn.Module:
    """A transformer, in float32.

    Args:
        name: one of `TINY`, built from its configuration; a folder that a model was saved in; or a name on the hub.
        objective: which head it has.
        labels: of a classifier; 1 for a number.
        options: of the configuration, in place of the usual ones.
        seed: of all weights that are new.

    Raises:
        ConfigurationError: transformers is not installed, or there is no such model.
    """
    transformers = require("transformers", "'astralora adapters'", extra="lowrank")
    if objective not in get_args(Objective):
        raise ConfigurationError(f"objective must be one of {', '.join(get_args(Objective))}, not {objective!r}")
    kind = getattr(transformers, _AUTO[objective])
    more: dict[str, Any] = dict(options or {})
    if objective == "classification":
        more["num_labels"] = labels
    with undisturbed_random_state(derive_seed(seed, "model")):
        try:
            if name in TINY:
                family, usual = TINY[name]
                known = transformers.AutoConfig.for_model(family)
                for option in more:
                    if not hasattr(known, option):  # transformers would take it, and make nothing of it
                        raise ConfigurationError(f"model.options.{option} is not known to models of {family}")
                model: nn.Module = kind.from_config(transformers.AutoConfig.for_model(family, **{**usual, **more}))
            else:
                model = kind.from_pretrained(name, dtype="float32", **more)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(_refused(name, error)) from None
    if objective == "causal" and _family(model) in ("bert", "roberta") and not model.config.is_decoder:  # type: ignore[union-attr]
        raise ConfigurationError(
            f"the model {name!r} sees what comes behind a token, which it cannot be asked for then; choose the "
            f"objective 'masked'"
        )
    return model


def positions(model: nn.Module) -> int | None:
    """How many tokens a text may have, where a model has a position for each of so many; None for any number."""
    config: Any = model.config
    match _family(model):
        case "opt" | "bert":
            return int(config.max_position_embeddings)
        case "roberta":
            return int(config.max_position_embeddings) - int(config.pad_token_id) - 1  # the padding's comes first
    return None


def _family(model: nn.Module) -> str:
    return str(getattr(model.config, "model_type", ""))


def _refused(name: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    if name in TINY or Path(name).exists():
        return f"the model {name!r} cannot be made: {reason}"
    return (
        f"the model {name!r} cannot be loaded: {reason}; without a network, give the folder that a model was saved in, "
        f"or one of {', '.join(TINY)}"
    )
