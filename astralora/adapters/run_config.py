"""Define the configuration of an adapter run, shared by defaults, TOML files and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator

from ..common.errors import ConfigurationError
from ..devices.files import file_name
from ..devices.parsing import read_toml
from ..devices.validation import Described, Seed
from .config import AdapterConfig, validate
from .proxies import PROXIES
from .search import Groups

__all__ = ["AdapterRun", "DataSection", "DynamicSection", "ModelSection", "ScoringSection", "TrainingSection"]

Option = bool | int | float | str


class _Section(Described):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(_Section):
    """Configure the transformer.

    Attributes:
        name: "tiny-opt", "tiny-roberta" or "tiny-gemma", made from a configuration; a folder; or a name on the hub.
        tokenizer: "bytes", a folder, or a name on the hub; the model's own unless given, and bytes for tiny models.
        options: options that replace those of the model's configuration.
    """

    name: str = "tiny-opt"
    tokenizer: str | None = None
    options: dict[str, Option] = Field(default_factory=dict)


class DataSection(_Section):
    """Configure the data.

    Attributes:
        name: public data set, such as "glue/sst2", "super_glue/boolq", "alpaca" or "wikitext".
        train: local file of training data, instead of ``name``: JSONL, CSV or text.
        test: local file of test data; a tenth of the training data is held out without it.
        text: key or column of the text.
        pair: key or column of the second text of a pair.
        label: key or column of the label.
        length: largest number of tokens of a text; at least 4, so that a token fits between the special tokens.
        limit: largest number of examples in each part.
    """

    name: str | None = None
    train: str | None = None
    test: str | None = None
    text: str = "text"
    pair: str | None = None
    label: str | None = None
    length: int = Field(default=64, ge=4)
    limit: PositiveInt | None = None


class TrainingSection(_Section):
    """Configure the training.

    Attributes:
        epochs: number of passes over the data.
        steps: largest number of steps; no limit unless given.
        batch_size: number of texts in a step.
        learning_rate: initial learning rate of AdamW, which falls along a cosine.
        weight_decay: decoupled weight decay.
        checkpoint_steps: number of steps between checkpoints; every epoch ends with a checkpoint too.
    """

    epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 8
    learning_rate: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    checkpoint_steps: PositiveInt = 100


class ScoringSection(_Section):
    """Configure the scoring of adapters.

    Attributes:
        proxy: a name in `PROXIES`.
        batches: number of batches of training data.
        perturb: standard deviation of noise on every B; see `astralora.adapters.score`.
        tolerance: tolerance of "alpha_test".
    """

    proxy: str = "grad_norm"
    batches: PositiveInt = 32
    perturb: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    tolerance: float = Field(default=0.01, ge=0, allow_inf_nan=False)

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, name: str) -> str:
        PROXIES.find(name)
        return name


class DynamicSection(_Section):
    """Configure the choice of adapters during training; see `astralora.adapters.Reallocation`.

    Attributes:
        realloc_n: time between choices, as a share of an epoch.
        turn_on: share of the adapters that are on.
        groups: whether LoRA and shortcuts are ranked together.
        warmup_steps: number of steps with all adapters on before the first choice.
        reuse: whether to score by the gradients of training; None means True if adapters are on devices and the proxy
            allows it.
    """

    realloc_n: float = Field(default=0.1, gt=0, le=1)
    turn_on: float = Field(default=0.25, ge=0, le=1)
    groups: Groups = "combined"
    warmup_steps: NonNegativeInt = 0
    reuse: bool | None = None


class AdapterRun(_Section):
    """Configure a complete run of adapters.

    Attributes:
        model: transformer.
        objective: objective of the training; "auto" predicts labels if the data have them, and else tokens.
        data: data.
        adapters: adapters.
        training: training.
        scoring: scoring of adapters.
        dynamic: choice of adapters during training; without it, all adapters stay on.
        seed: seed of all random numbers: weights, adapters, order of the data, and so on.
    """

    model: ModelSection = ModelSection()
    objective: Literal["auto", "causal", "masked", "classification"] = "auto"
    data: DataSection = DataSection()
    adapters: AdapterConfig = AdapterConfig()
    training: TrainingSection = TrainingSection()
    scoring: ScoringSection = ScoringSection()
    dynamic: DynamicSection | None = None
    seed: Seed = 0

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Merge the defaults, a TOML file and nested ``overrides``; later ones take precedence.

        Raises:
            ConfigurationError: the file cannot be read, is not TOML, or a key is unknown or a value invalid.
        """
        values = {} if path is None else read_toml(path, error=ConfigurationError)
        source = "the configuration" if path is None else file_name(path)
        values = _merged(values, overrides or {})
        adapters = values.pop("adapters", {})
        if not isinstance(adapters, AdapterConfig):
            if not isinstance(adapters, Mapping):
                raise ConfigurationError(f"adapters in {source} must be tables, not {adapters!r}")
            adapters = AdapterConfig.parse(adapters, f"adapters in {source}")
        return validate(cls, {**values, "adapters": adapters}, source)

    def to_toml(self) -> str:
        """Return the complete configuration as TOML, from which the run can be repeated."""
        return tomli_w.dumps({**self.model_dump(exclude_none=True), "adapters": self.adapters.to_tables()})


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
