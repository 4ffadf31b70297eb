"""Everything that makes a run of adapters, as one model: defaults, TOML and command line meet here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator

from ..common.errors import ConfigurationError
from .config import AdapterConfig, read_toml, validated
from .proxies import PROXIES
from .search import Groups

__all__ = ["AdapterRun", "DataSection", "DynamicSection", "ModelSection", "ScoringSection", "TrainingSection"]

Option = bool | int | float | str


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(_Section):
    """Which transformer.

    Attributes:
        name: "tiny-opt", "tiny-roberta" or "tiny-gemma", built from a configuration; a folder; or a name on the hub.
        tokenizer: "bytes", a folder, or a name on the hub; the model's own unless given, and bytes for tiny ones.
        options: of the model's configuration, in place of the usual ones.
    """

    name: str = "tiny-opt"
    tokenizer: str | None = None
    options: dict[str, Option] = {}


class DataSection(_Section):
    """What to learn from.

    Attributes:
        name: a public data set, such as "glue/sst2", "super_glue/boolq", "alpaca" or "wikitext".
        train: a local file in its place: JSONL, CSV or text.
        test: another to test on; a tenth is held out where there is none.
        text: key or column of the text.
        pair: key or column of the second text of a pair.
        label: key or column of the label.
        length: tokens of a text, at most; 4 at least, to hold one beside those around it.
        limit: examples of each part, at most.
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
    """How to train.

    Attributes:
        epochs: passes over the data.
        steps: the most to make; all of them unless given.
        batch_size: texts a step.
        learning_rate: of AdamW, at the start; falls along a cosine.
        weight_decay: decoupled.
        checkpoint_steps: from one checkpoint to the next; there is one behind every epoch too.
    """

    epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 8
    learning_rate: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    checkpoint_steps: PositiveInt = 100


class ScoringSection(_Section):
    """How adapters are scored.

    Attributes:
        proxy: a name in `PROXIES`.
        batches: of training data.
        perturb: noise on every B in the meantime; see `score`.
        tolerance: of "alpha_test".
    """

    proxy: str = "grad_norm"
    batches: PositiveInt = 32
    perturb: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    tolerance: float = Field(default=0.01, ge=0, allow_inf_nan=False)

    @field_validator("proxy")
    @classmethod
    def _known(cls, name: str) -> str:
        PROXIES.find(name)
        return name


class DynamicSection(_Section):
    """Adapters that take turns; see `Reallocation`.

    Attributes:
        realloc_n: share of an epoch after which adapters are chosen anew.
        turn_on: share of the adapters that are on.
        groups: what is ranked with what.
        warmup_steps: at the start with all adapters on, before they are first chosen.
        reuse: score by the gradients of training itself; None for where adapters are on devices.
    """

    realloc_n: float = Field(default=0.1, gt=0, le=1)
    turn_on: float = Field(default=0.25, ge=0, le=1)
    groups: Groups = "combined"
    warmup_steps: NonNegativeInt = 0
    reuse: bool | None = None


class AdapterRun(_Section):
    """A complete run.

    Attributes:
        model: which transformer.
        objective: what to learn; "auto" for labels where there are any, and for the text itself otherwise.
        data: what to learn from.
        adapters: which adapters.
        training: how to train.
        scoring: how adapters are scored.
        dynamic: let them take turns; all are on otherwise.
        seed: of weights, adapters, data order, and whatever is random.
    """

    model: ModelSection = ModelSection()
    objective: Literal["auto", "causal", "masked", "classification"] = "auto"
    data: DataSection = DataSection()
    adapters: AdapterConfig = AdapterConfig()
    training: TrainingSection = TrainingSection()
    scoring: ScoringSection = ScoringSection()
    dynamic: DynamicSection | None = None
    seed: NonNegativeInt = 0

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Defaults, overridden by a TOML file, overridden by nested ``overrides``.

        Raises:
            ConfigurationError: no such file, no TOML, or a key or value that does not belong there.
        """
        values = {} if path is None else read_toml(path)
        source = "the configuration" if path is None else str(path)
        values = _merged(values, overrides or {})
        adapters = values.pop("adapters", {})
        if not isinstance(adapters, AdapterConfig):
            if not isinstance(adapters, Mapping):
                raise ConfigurationError(f"adapters in {source} must be tables, not {adapters!r}")
            adapters = AdapterConfig.parse(adapters, f"adapters in {source}")
        return validated(cls, {**values, "adapters": adapters}, source)

    def to_toml(self) -> str:
        """The complete configuration, from which the run can be repeated."""
        return tomli_w.dumps({**self.model_dump(exclude_none=True), "adapters": self.adapters.to_tables()})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
