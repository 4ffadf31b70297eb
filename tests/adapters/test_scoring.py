"""Test proxies against independent gradients and on tasks with a known answer, and test restoration."""

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

import astralora as al
from astralora import ConfigurationError
from astralora.adapters import PROXIES, TiedScoresWarning, score
from astralora.adapters.proxies import unit_grad_norm, unit_snip
from astralora.adapters.random_state import global_random_state

from .conftest import randomise_b

Transformer = Callable[..., Any]
Batches = list[dict[str, Tensor]]


def gradients(adapted: Any, batches: Batches) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the gradients of A and B by key, summed over the batches by plain backward passes."""
    adapted.model.zero_grad()
    for batch in batches:
        adapted.model(**batch).loss.backward()
    found = {unit.key: tuple(weight.grad.clone() for weight in unit.weights) for unit in adapted.units}
    adapted.model.zero_grad()
    return found


def test_grad_norm_is_the_norm_of_summed_gradients(transformer: Transformer, batches: Batches) -> None:
    adapted = randomise_b(al.adapters.adapt(transformer("gemma")), std=0.1)
    expected = {key: float(a.norm() + b.norm()) for key, (a, b) in gradients(adapted, batches).items()}
    assert dict(score(adapted, batches).values) == pytest.approx(expected, rel=1e-4)


def test_snip_is_the_sum_of_weights_times_gradients(transformer: Transformer, batches: Batches) -> None:
    adapted = randomise_b(al.adapters.adapt(transformer("opt")), std=0.1)
    found = gradients(adapted, batches)
    expected = {
        unit.key: sum(float((w * g).abs().sum().detach()) for w, g in zip(unit.weights, found[unit.key], strict=True))
        for unit in adapted.units
    }
    assert dict(score(adapted, batches, "snip").values) == pytest.approx(expected, rel=1e-4)


def test_scores_from_gradients_of_training_equal_those_of_a_pass(transformer: Transformer, batches: Batches) -> None:
    adapted = randomise_b(al.adapters.adapt(transformer("roberta")), std=0.1)
    scores = {proxy: score(adapted, batches[:1], proxy).values for proxy in ("grad_norm", "snip")}
    adapted.model(**batches[0]).loss.backward()
    for unit in adapted.units:
        assert unit_grad_norm(unit) == pytest.approx(scores["grad_norm"][unit.key], rel=1e-4)
        assert unit_snip(unit) == pytest.approx(scores["snip"][unit.key], rel=1e-4)


def test_synflow_is_snip_of_the_summed_outputs_with_absolute_weights(
    transformer: Transformer, batches: Batches
) -> None:
    adapted = randomise_b(al.adapters.adapt(transformer("opt")), std=0.1)
    duplicate = copy.deepcopy(adapted)
    with torch.no_grad():
        for parameter in duplicate.model.parameters():
            parameter.copy_(parameter.abs())
    ones = torch.ones(1, 9, 16)
    duplicate.model(inputs_embeds=ones, attention_mask=torch.ones(1, 9)).logits.sum().backward()
    units = duplicate.units
    expected = {unit.key: sum(float((w * w.grad).abs().sum().detach()) for w in unit.weights) for unit in units}
    assert dict(score(adapted, batches, "synflow").values) == pytest.approx(expected, rel=1e-3)


def test_alpha_test_finds_the_smallest_sufficient_importance(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    needed = {"model_layer_0.fc1": 0.35, "model_layer_1.residual1": 0.8, "model_layer_2.q_proj": 1.0}

    def metric(_: nn.Module) -> float:
        """Return 1 while each adapter has at least the importance that is needed, else 0."""
        return float(all(adapted.unit(key).importance >= least - 1e-9 for key, least in needed.items()))

    scores = score(adapted, batches, "alpha_test", metric=metric).values
    assert {key: scores[key] for key in needed} == {
        "model_layer_0.fc1": 0.4, "model_layer_1.residual1": 0.8, "model_layer_2.q_proj": 1.0,
    }  # fmt: skip
    assert all(value == 0 for key, value in scores.items() if key not in needed)


def test_alpha_test_uses_the_loss_without_a_metric(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    unit = adapted.unit("model_layer_2.residual2")
    optimizer = torch.optim.Adam(unit.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        adapted.model(**batches[0]).loss.backward()
        optimizer.step()
    scores = score(adapted, batches[:1], "alpha_test", tolerance=0.01).values
    assert scores[unit.key] >= 0.5
    assert max(value for key, value in scores.items() if key != unit.key) == 0


@pytest.mark.parametrize("name", ["opt", "roberta", "gemma"])
@pytest.mark.parametrize("proxy", list(PROXIES))
def test_scoring_restores_the_model(proxy: str, name: str, transformer: Transformer, batches: Batches) -> None:
    adapted = randomise_b(al.adapters.adapt(transformer(name)), std=0.1)
    model = adapted.model
    first = model.get_input_embeddings().weight
    with torch.no_grad():
        first[5, :4] = torch.tensor([0.0, -0.0, -1.5, 2.0])
    model.train()
    model(**batches[0]).loss.backward()
    adapted.unit("model_layer_0.fc1").enabled = False
    adapted.unit("model_layer_1.shortcut2").enabled = False
    adapted.unit("model_layer_1.v_proj").importance = 0.3

    def state() -> list[Any]:
        tensors = [*model.parameters(), *model.buffers()]
        bits = [tensor.detach().clone().view(torch.uint8) for tensor in tensors if tensor.ndim]
        return [
            bits,
            [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
            [parameter.requires_grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [(unit.enabled, unit.importance) for unit in adapted.units],
            *global_random_state().values(),
        ]

    def drawing_loss(model: nn.Module, batch: Any) -> Tensor:
        """Draw from the three global generators; scipy draws from the generator of numpy."""
        loss: Tensor = model(**batch).loss
        return loss + 0 * torch.rand(()) * random.random() * float(scipy.stats.uniform.rvs())

    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TiedScoresWarning)
        score(adapted, batches, proxy, perturb=0.1, loss=drawing_loss)

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    for old, new in zip(before, state(), strict=True):
        assert same(old, new)


def test_scoring_restores_the_model_after_an_error(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    adapted.unit("model_layer_0.fc1").enabled = False
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("the loss failed")

    with pytest.raises(RuntimeError, match="the loss failed"):
        score(adapted, batches, "snip", perturb=1.0, loss=broken)
    assert all(torch.equal(before[name], value) for name, value in adapted.model.state_dict().items())
    assert not adapted.unit("model_layer_0.fc1").enabled


@pytest.mark.parametrize("proxy", ["snip", "synflow"])
def test_tied_scores_with_every_b_at_zero_cause_a_warning_with_a_remedy(
    proxy: str, transformer: Transformer, batches: Batches
) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    with pytest.warns(TiedScoresWarning, match="score 0 by .* every B is zero; train for some steps first, or perturb"):
        assert set(score(adapted, batches, proxy).values.values()) == {0.0}
    assert len(set(score(adapted, batches, proxy, perturb=0.01).values.values())) > 20


def test_equal_constant_scores_cause_no_warning(transformer: Transformer, batches: Batches) -> None:
    assert set(score(al.adapters.adapt(transformer("opt")), batches, "constant").values.values()) == {1.0}


# -- a task that a single adapter can solve ------------------------------------------------------

# The weight that each adapter needs: fc2 gets its input from fc1, o_proj from v_proj, and the output of v_proj goes
# through o_proj.
NEEDED_PATH = {"fc2": "fc1", "o_proj": "self_attn.v_proj", "v_proj": "self_attn.out_proj"}


def planted(transformer: Transformer, layer: int, name: str, seed: int) -> Any:
    """Make a model in which a single adapter can lower the loss.

    All layers return their input, since one weight of each path is zero. In one layer, the weight that the adapter
    needs is not. Every other LoRA has an input of zero, or its output is multiplied by zero.
    """
    model = transformer("opt", seed=seed)
    with torch.no_grad():
        for number, module in enumerate(model.model.decoder.layers):
            for path in ("fc1", "fc2", "self_attn.v_proj", "self_attn.out_proj"):
                linear = module.get_submodule(path)
                linear.bias.zero_()
                if (number, path) != (layer, NEEDED_PATH[name]):
                    linear.weight.zero_()
                    linear.bias.fill_(-0.5 if path == "fc1" else 0.0)  # the ReLU after fc1 returns zero
    return al.adapters.adapt(model, {"default": {"disable_projector": True, "r": 4}}, seed=seed)


def loss_decrease(adapted: Any, units: list[Any], batches: Batches, steps: int = 8) -> float:
    """Train adapters, and return the decrease of the loss."""
    optimizer = torch.optim.Adam([p for unit in units for p in unit.parameters()], lr=0.03)
    losses = []
    for _ in range(steps):
        loss = sum((adapted.model(**batch).loss for batch in batches), torch.zeros(()))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0] - losses[-1]


@pytest.mark.parametrize(("layer", "name"), [(0, "fc2"), (1, "o_proj"), (2, "v_proj"), (2, "fc2")])
@pytest.mark.parametrize("seed", [0, 1])
def test_grad_norm_and_snip_after_warm_up_rank_the_useful_adapter_first(
    layer: int, name: str, seed: int, transformer: Transformer, batches: Batches
) -> None:
    which = f"model_layer_{layer}.{name}"
    adapted = planted(transformer, layer, name, seed)
    assert len(adapted.units) == 18
    duplicate = copy.deepcopy(adapted)
    alone = loss_decrease(duplicate, [duplicate.unit(which)], batches)
    duplicate = copy.deepcopy(adapted)
    others = loss_decrease(duplicate, [unit for unit in duplicate.units if unit.key != which], batches)
    assert alone > 0.1
    assert others == 0, "no other adapter can lower the loss"

    scores = score(adapted, batches, "grad_norm").values
    assert max(scores, key=lambda key: scores[key]) == which
    loss_decrease(adapted, adapted.units, batches, steps=4)
    scores = score(adapted, batches, "snip").values
    assert max(scores, key=lambda key: scores[key]) == which


def test_an_unknown_proxy_is_refused(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    with pytest.raises(ConfigurationError, match="no proxy named 'magic'; known are constant, grad_norm, snip"):
        score(adapted, batches, "magic")
