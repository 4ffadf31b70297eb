"""Test adapters whose factors are computed by devices."""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

import astralora as al
from astralora import ConfigurationError
from astralora.adapters.proxies import unit_grad_norm
from astralora.estimators import ESTIMATORS
from astralora.simulators import KINDS, device_factory

Transformer = Callable[..., Any]
Batches = list[dict[str, Tensor]]


def make_device(n: int, m: int) -> al.Device:
    return device_factory(KINDS["matvec"])(n, m)


@pytest.fixture
def adapted(transformer: Transformer) -> Any:
    found = al.adapters.adapt(transformer("opt"), {"default": {"r": 2}})
    with torch.no_grad():
        for unit in found.units:
            unit.weights[1].normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    keys = ["model_layer_0.fc2.A", "model_layer_1.q_proj.A", "model_layer_2.residual1.A"]
    al.adapters.put_on_devices(
        found, dict.fromkeys(keys, make_device), estimator="gaussian", surrogate="online", samples=3
    )
    return found


def usage(unit: Any) -> int:
    return sum(layer.session.usage.queries + layer.session.usage.programs for layer in unit.devices)


def test_factors_of_both_families_are_trained_on_devices(adapted: Any, batches: Batches) -> None:
    on = [unit for unit in adapted.units if unit.devices]
    assert [unit.key for unit in on] == ["model_layer_0.fc2", "model_layer_1.q_proj", "model_layer_2.residual1"]
    before = [unit.weights[0].detach().clone() for unit in on]
    optimizer = torch.optim.Adam([p for unit in on for p in unit.parameters()], lr=0.01)
    adapted.model(**batches[0]).loss.backward()
    optimizer.step()
    assert not any(torch.equal(value, unit.weights[0]) for value, unit in zip(before, on, strict=True))


def test_an_adapter_that_is_off_does_not_query_its_device(adapted: Any, batches: Batches) -> None:
    off, on = adapted.unit("model_layer_1.q_proj"), adapted.unit("model_layer_0.fc2")
    off.enabled = False
    before = usage(off), usage(on)
    for batch in batches:
        adapted.model(**batch).loss.backward()
    assert usage(off) == before[0]
    assert usage(on) > before[1]


def test_reallocation_queries_devices_only_for_steps_of_adapters_that_are_on(adapted: Any, batches: Batches) -> None:
    reallocation = al.adapters.Reallocation(adapted, cycle(batches), interval=4, turn_on=0.1)
    assert reallocation.reuse, "with devices, scores come from the gradients of training"
    spent: dict[str, list[int]] = {unit.key: [] for unit in adapted.units if unit.devices}
    for step in range(8):
        reallocation.before_step(step)
        before = {key: usage(adapted.unit(key)) for key in spent}
        adapted.model.zero_grad()
        adapted.model(**batches[step % 4]).loss.backward()
        reallocation.after_backward(step)
        for key in spent:
            spent[key].append(usage(adapted.unit(key)) - before[key])
    for key, each in spent.items():
        for step, count in enumerate(each):
            surveyed = step % 4 == 0
            chosen = reallocation.history[step // 4].enabled
            assert (count > 0) == (surveyed or key in chosen), (key, step)


def test_the_gradient_norm_of_a_factor_on_a_device_excludes_the_noise(adapted: Any, batches: Batches) -> None:
    unit = adapted.unit("model_layer_0.fc2")
    (layer,) = unit.devices
    exact = ESTIMATORS.make("exact")
    estimator = layer.estimator

    def squared_gradient(with_estimator: Any) -> float:
        layer.estimator = with_estimator
        adapted.model.zero_grad()
        adapted.model(**batches[0]).loss.backward()
        return float(layer.controls.grad.square().sum())

    truth = squared_gradient(exact)
    raw, corrected = [], []
    for _ in range(300):
        raw.append(squared_gradient(estimator))
        corrected.append(float(estimator.gradient_energy))
        assert unit_grad_norm(unit) == pytest.approx(
            max(estimator.gradient_energy, 0) ** 0.5 + float(unit.weights[1].grad.norm()), rel=1e-5
        )
    values = torch.tensor(corrected)
    # Each energy is the mean of three squares of normal numbers: relative variance 2 / 3.
    assert abs(float(values.mean()) - truth) < 5 * truth * (2 / 3 / 300) ** 0.5
    assert float(torch.tensor(raw).mean()) > 5 * truth, "noise multiplies it by (P + 1 + S) / S = 17.3"


def test_synflow_is_refused_with_weights_on_devices(adapted: Any, batches: Batches) -> None:
    with pytest.raises(ConfigurationError, match="which a device cannot take; use 'grad_norm'"):
        al.adapters.score(adapted, batches, "synflow")


@pytest.mark.parametrize("proxy", ["grad_norm", "snip"])
def test_scoring_on_devices_restores_their_layers(proxy: str, adapted: Any, batches: Batches) -> None:
    layer = adapted.unit("model_layer_0.fc2").devices[0]
    adapted.model(**batches[0]).loss.backward()
    before = layer.get_extra_state(), layer.controls.detach().clone()
    al.adapters.score(adapted, batches, proxy)
    after = layer.get_extra_state()
    assert torch.equal(before[0]["estimator"]["generator"], after["estimator"]["generator"])
    assert torch.equal(before[0]["surrogate"]["matrix"], after["surrogate"]["matrix"])
    assert torch.equal(before[1], layer.controls)


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("model_layer_0.fc2", "no adapter 'model_layer_0'|names no factor"),
        ("model_layer_9.fc2.A", "no adapter 'model_layer_9.fc2'"),
        ("model_layer_0.fc2.A", "on a device already"),
    ],
)
def test_an_unknown_factor_is_refused(key: str, complaint: str, adapted: Any) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        al.adapters.put_on_devices(adapted, {key: make_device})


def test_a_refused_device_leaves_the_model_unchanged(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    before = adapted.model(**batches[0]).logits
    with pytest.raises(ConfigurationError):
        al.adapters.put_on_devices(adapted, {"model_layer_0.fc2.A": make_device(3, 3)})
    assert torch.equal(adapted.model(**batches[0]).logits, before)
    assert isinstance(adapted.unit("model_layer_0.fc2").factors[0], torch.nn.Linear)
