"""Test configurations of adapters and scores as TOML."""

from pathlib import Path
from typing import Any

import pytest

from astralora import ConfigurationError
from astralora.adapters import AdapterConfig
from astralora.adapters.run_config import AdapterRun
from astralora.adapters.scoring import Scores

NETWORK = """
granularity = "network"

[default]
r = 4
lora_alpha = 8.0
lora_dropout = 0.1
disable_adapter = false
importance_alpha = 0.9
shortcut_alpha = 6.0
proj_dropout = 0.2
disable_projector = true
importance_beta = 0.7

[all_layers.q_proj]
r = 16
disable_adapter = true

[all_layers.shortcut1]
disable_projector = false
importance_beta = 0.5
"""

LAYER = """
granularity = "layer"

[default]
disable_adapter = true

[model_layer_0.v_proj]
disable_adapter = false

[model_layer_11.residual2]
r = 2
shortcut_alpha = 3.0
"""


def test_tables_override_the_default_of_one_adapter() -> None:
    import tomllib

    config = AdapterConfig.parse(tomllib.loads(NETWORK))
    for layer in (0, 7):
        query, key, first, second = (
            config.resolve(layer, name) for name in ("q_proj", "k_proj", "shortcut1", "shortcut2")
        )
        assert (query.rank, query.alpha, query.enabled) == (16, 8.0, False)
        assert (key.rank, key.alpha, key.dropout, key.enabled, key.importance) == (4, 8.0, 0.1, True, 0.9)
        assert (first.rank, first.alpha, first.dropout, first.enabled, first.importance) == (4, 6.0, 0.2, True, 0.5)
        assert (second.enabled, second.importance) == (False, 0.7)
    config = AdapterConfig.parse(tomllib.loads(LAYER))
    assert config.resolve(0, "v_proj").enabled
    assert not config.resolve(1, "v_proj").enabled
    assert config.resolve(11, "residual2").rank == 2


@pytest.mark.parametrize("text", [NETWORK, LAYER, ""])
def test_a_configuration_is_the_same_after_saving_and_loading(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(text)
    config = AdapterConfig.load(tmp_path / "one.toml")
    (tmp_path / "two.toml").write_text(config.to_toml())
    again = AdapterConfig.load(tmp_path / "two.toml")
    assert again == config
    assert again.to_toml() == config.to_toml()


def test_the_configuration_of_a_run_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    (tmp_path / "layer.toml").write_text(LAYER)
    adapters = AdapterConfig.load(tmp_path / "layer.toml").to_tables()
    run = AdapterRun.load(None, {"adapters": adapters, "dynamic": {"turn_on": 0.5}, "data": {"train": "x.txt"}})
    (tmp_path / "run.toml").write_text(run.to_toml())
    assert AdapterRun.load(tmp_path / "run.toml") == run
    assert run.adapters.resolve(11, "residual2").alpha == 3.0


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({"colour": 1}, "colour in t: there is no such key; known are granularity, default,"),
        ({"default": {"rank": 4}}, "default.rank in t: there is no such key; known are r, lora_alpha, lora_dropout"),
        ({"all_layers": {"q": {}}}, "all_layers.q in t: there is no such key; known are q_proj, k_proj"),
        ({"all_layers": {"q_proj": {"proj_dropout": 0.1}}}, "q_proj.proj_dropout in t: there is no such key; known are "
         "r, lora_alpha, lora_dropout, disable_adapter, importance_alpha"),
        ({"all_layers": {"residual1": {"lora_alpha": 1}}}, "known are r, shortcut_alpha, proj_dropout, "
         "disable_projector, importance_beta"),
        ({"granularity": "layer", "model_layer_3": {"fc1": {"rr": 1}}}, "model_layer_3.fc1.rr in t: there is no"),
        ({"model_layer_3": {"fc1": {"r": 1}}}, "model_layer_3 in t needs granularity 'layer'"),
        ({"granularity": "layer", "all_layers": {}}, "all_layers in t needs granularity 'network'"),
        ({"granularity": "module"}, "granularity in t: Input should be 'network' or 'layer'"),
        ({"default": {"r": 0}}, "default.r in t: Input should be greater than 0"),
        ({"default": {"lora_dropout": 1.0}}, "default.lora_dropout in t: Input should be less than 1"),
        ({"layers": {}}, "layers in t is not a known table"),
    ],
)  # fmt: skip
def test_unknown_keys_and_invalid_values_are_refused_by_name(tables: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        AdapterConfig.parse(tables, "t")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"trainning": {}}, "trainning in the configuration: there is no such key; known are model, objective, data"),
        (
            {"training": {"lr": 1}},
            "training.lr in the configuration: there is no such key; known are epochs, steps, batch_size",
        ),
        (
            {"dynamic": {"turnon": 1}},
            "dynamic.turnon in the configuration: there is no such key; known are realloc_n, turn_on",
        ),
        ({"scoring": {"proxy": "magic"}}, "there is no proxy named 'magic'; known are constant, grad_norm, snip"),
        ({"adapters": {"default": {"rank": 1}}}, "default.rank in adapters in the configuration: there is no such key"),
        ({"adapters": 3}, "adapters in the configuration must be tables"),
    ],
)
def test_unknown_keys_and_invalid_values_of_a_run_are_refused_by_name(
    overrides: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        AdapterRun.load(None, overrides)
    assert complaint in str(error.value)


def test_scores_are_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    values = {"model_layer_0.q_proj": 0.1 + 0.2, "model_layer_10.shortcut2": 1e-12}
    scores = Scores("snip", 32, values, {"model_layer_0.q_proj": 32.0, "model_layer_10.shortcut2": 64.0})
    scores.save(tmp_path / "new" / "scores.toml")
    assert Scores.load(tmp_path / "new" / "scores.toml") == scores


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no scores"),
        ('proxy = "snip"\nbatches = 1\n[layer_0]\nq_proj = 1', "layer_0 in .* is not the table of a layer"),
        ('proxy = "snip"\nbatches = 1\n[model_layer_0]\nquery = 1', "model_layer_0.query in .* is not an adapter"),
        ('proxy = "snip"\nbatches = 1\n[model_layer_0]\nq_proj = nan', "must be a finite number"),
        ("proxy = ", "is not TOML"),
    ],
)
def test_invalid_files_of_scores_are_refused(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        Scores.load(tmp_path / "s.toml")
