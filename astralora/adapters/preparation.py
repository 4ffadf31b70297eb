"""Prepare the adapted model and the data of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ConfigurationError
from ..common.extras import require
from .adapted import AdaptedModel, adapt
from .data import Data, load_data
from .folder import AdapterFolder
from .models import TINY, Objective, load_model, max_length
from .run_config import AdapterRun
from .sources import COLLECTIONS
from .tokens import load_tokens

__all__ = ["PreparedRun", "prepare", "prepare_from_folder"]


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Hold the adapted model and the data of a run.

    Attributes:
        adapted: adapted model.
        data: training and test examples.
    """

    adapted: AdaptedModel
    data: Data


def prepare(config: AdapterRun) -> PreparedRun:
    """Load the data and the model of a run, and add new adapters to the model.

    Raises:
        ConfigurationError: the data or the model cannot be loaded, or do not match.
    """
    require("transformers", "'astralora adapters'", extra="lowrank")
    tiny = config.model.name in TINY
    tokens = load_tokens(config.model.tokenizer or ("bytes" if tiny else config.model.name))
    data = load_data(config.data, tokens, _objective(config), seed=config.seed)
    model: Any = load_model(
        config.model.name, data.objective, labels=data.labels, options=dict(config.model.options), seed=config.seed
    )
    size = model.get_input_embeddings().num_embeddings
    if size < tokens.size:
        raise ConfigurationError(
            f"the model has {size} tokens and its tokenizer {tokens.size}; choose a tokenizer that fits"
        )
    limit = max_length(model)
    if limit is not None and config.data.length > limit:
        raise ConfigurationError(f"the model takes {limit} tokens at most; data.length is {config.data.length}")
    if data.objective == "classification":
        model.config.pad_token_id = data.pad
    return PreparedRun(adapt(model, config.adapters, seed=config.seed), data)


def prepare_from_folder(config: AdapterRun, folder: AdapterFolder) -> PreparedRun:
    """Prepare a run with the trained adapters of a finished run.

    Args:
        config: configuration of the run, possibly with other data.
        folder: folder of the finished run.

    Raises:
        ConfigurationError: the run in the folder has not ended, or `prepare` refuses the configuration.
    """
    state = folder.load() if folder.summary() is not None else None
    if state is None:
        raise ConfigurationError(f"the run in {folder.path} has not ended, and thus has no trained adapters")
    prepared = prepare(config)
    prepared.adapted.load_trained_state(state["adapters"])
    prepared.adapted.set_enabled(state["enabled"])
    return prepared


def _objective(config: AdapterRun) -> Objective:
    if config.objective != "auto":
        return config.objective
    collection = COLLECTIONS.get(config.data.name or "")
    if config.data.label is not None or (config.data.train is None and collection and collection.label):
        return "classification"
    return "masked" if "bert" in Path(config.model.name).name.lower() else "causal"
