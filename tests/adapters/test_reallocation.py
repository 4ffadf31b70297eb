"""Test the choice of adapters, before and during training."""

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import astralora as al
from astralora import ConfigurationError
from astralora.adapters import Reallocation, Scores, search
from astralora.adapters.search import choose

Transformer = Callable[..., Any]
Batches = list[dict[str, Tensor]]

SCORES = {
    "model_layer_0.q_proj": 5.0,
    "model_layer_0.fc1": 1.0,
    "model_layer_0.residual1": 4.0,
    "model_layer_1.q_proj": 3.0,
    "model_layer_1.fc1": 2.0,
    "model_layer_1.residual1": 0.5,
}


def train(adapted: Any, batches: Batches, steps: int, lr: float = 0.01, **options: Any) -> Reallocation:
    reallocation = Reallocation(adapted, cycle(batches), **{"interval": 4, "count": 2, **options})
    optimizer = torch.optim.AdamW([p for unit in adapted.units for p in unit.parameters()], lr=lr)
    for step in range(steps):
        reallocation.before_step(step)
        optimizer.zero_grad()
        loss = adapted.model(**batches[step % len(batches)]).loss
        if loss.requires_grad:
            loss.backward()
        reallocation.after_backward(step)
        optimizer.step()
    return reallocation


@pytest.mark.parametrize(
    ("turn_on", "groups", "expected"),
    [
        (0.5, "combined", ["model_layer_0.q_proj", "model_layer_0.residual1", "model_layer_1.q_proj"]),
        (0.5, "separated", ["model_layer_0.q_proj", "model_layer_0.residual1", "model_layer_1.q_proj"]),
        (0.5, "off", ["model_layer_0.q_proj", "model_layer_1.q_proj"]),
        (0.25, "separated", ["model_layer_0.q_proj", "model_layer_0.residual1"]),
        (0.01, "combined", ["model_layer_0.q_proj"]),
        (0.0, "combined", []),
        (1.0, "separated", list(SCORES)),
        (1.0, "off", [key for key in SCORES if "residual" not in key]),
    ],
)
def test_the_best_adapters_are_chosen_in_each_group(turn_on: float, groups: Any, expected: list[str]) -> None:
    assert choose(SCORES, turn_on, groups) == expected


def test_ties_are_ordered_by_chance(generator: torch.Generator) -> None:
    choices = {tuple(choose(dict.fromkeys(SCORES, 1.0), 0.3, generator=generator)) for _ in range(60)}
    assert len(choices) > 8, "six adapters have 15 pairs"


def test_a_search_switches_the_best_adapters_on_with_the_given_rank() -> None:
    found = search(Scores("snip", 4, SCORES), turn_on=0.5, rank=3)
    assert found.granularity == "layer"
    resolved = {key: found.resolve(int(key[12]), key.partition(".")[2]) for key in SCORES}
    assert {key for key, each in resolved.items() if each.enabled} == set(choose(SCORES, 0.5))
    assert {each.rank for each in resolved.values() if each.enabled} == {3}
    assert not found.resolve(0, "k_proj").enabled, "adapters without a score stay off"


def test_proportional_ranks_stay_within_the_budget() -> None:
    costs = {key: 64.0 if "fc" in key else 32.0 for key in SCORES}
    found = search(Scores("snip", 4, SCORES, costs), turn_on=0.5, rank=8, mode="proportional")
    ranks = {
        key: each.rank if (each := found.resolve(int(key[12]), key.partition(".")[2])).enabled else 0 for key in SCORES
    }
    budget = 0.5 * 8 * sum(costs.values())
    spent = sum(ranks[key] * costs[key] for key in SCORES)
    assert budget - 64 < spent <= budget
    # Ranks are proportional to the scores, rounded by at most one.
    scale = budget / sum(SCORES[key] * costs[key] for key in SCORES)
    assert all(abs(ranks[key] - scale * SCORES[key]) <= 1 for key in SCORES)
    with pytest.raises(ConfigurationError, match=r"have no cost for a rank of"):
        search(Scores("snip", 4, SCORES), mode="proportional")


@pytest.mark.parametrize("groups", ["combined", "separated", "off"])
def test_each_interval_has_a_share_on_and_an_entry_in_the_history(
    groups: Any, transformer: Transformer, batches: Batches, tmp_path: Path
) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    reallocation = train(adapted, batches, 10, groups=groups, warmup_steps=1)
    assert [choice.step for choice in reallocation.history] == [1, 5, 9]
    share = {"combined": round(0.25 * 29), "separated": round(0.25 * 18) + round(0.25 * 11), "off": round(0.25 * 18)}
    assert all(len(choice.enabled) == share[groups] for choice in reallocation.history)
    assert {unit.key for unit in adapted.units if unit.enabled} == set(reallocation.history[-1].enabled)
    reallocation.save(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 5, 9]
    frequency = Scores.load(tmp_path / "frequency.toml")
    assert sum(frequency.values.values()) == pytest.approx(share[groups])
    for key, value in frequency.values.items():
        assert value * 3 == pytest.approx(sum(key in line["enabled"] for line in lines))
    assert search(frequency).granularity == "layer"


def test_adapters_that_are_off_keep_weights_and_optimizer_state(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    history: dict[str, list[Tensor]] = {}

    class CheckedReallocation(Reallocation):
        def before_step(self, step: int) -> None:
            for unit in adapted.units:
                if not unit.enabled:
                    assert torch.equal(unit.weights[1], history[unit.key][-1]), "it was not trained while it was off"
            super().before_step(step)
            for unit in adapted.units:
                history.setdefault(unit.key, []).append(unit.weights[1].detach().clone())

    reallocation = CheckedReallocation(adapted, cycle(batches), interval=2, proxy="constant", turn_on=0.5)
    optimizer = torch.optim.AdamW([p for unit in adapted.units for p in unit.parameters()], lr=0.01, weight_decay=0.1)
    for step in range(12):
        reallocation.before_step(step)
        optimizer.zero_grad()
        adapted.model(**batches[0]).loss.backward()
        reallocation.after_backward(step)
        optimizer.step()
    steps = [int(optimizer.state[unit.weights[1]].get("step", 0)) for unit in adapted.units]
    on = [sum(2 * (unit.key in choice.enabled) for choice in reallocation.history) for unit in adapted.units]
    assert steps == on


@pytest.mark.parametrize(("turn_on", "count"), [(0.0, 0), (1.0, 29)])
def test_shares_of_0_and_1_need_no_scores(
    turn_on: float, count: int, transformer: Transformer, batches: Batches
) -> None:
    def unused_batches() -> Iterator[dict[str, Tensor]]:
        raise AssertionError("no batch is needed")
        yield

    adapted = al.adapters.adapt(transformer("opt"))
    before = {name: value.clone() for name, value in adapted.trained_state().items()}
    reallocation = Reallocation(adapted, unused_batches(), interval=2, turn_on=turn_on)
    reallocation.before_step(0)
    assert sum(unit.enabled for unit in adapted.units) == count == len(reallocation.history[0].enabled)
    train(adapted, batches, 4, turn_on=turn_on)
    changed = [name for name, value in adapted.trained_state().items() if not torch.equal(before[name], value)]
    assert bool(changed) == (count > 0)


@pytest.mark.parametrize(
    ("proxy", "reuse"),
    [*((proxy, False) for proxy in ("constant", "grad_norm", "snip", "synflow")), ("grad_norm", True), ("snip", True)],
)
def test_a_learning_rate_of_0_changes_no_weight(
    proxy: str, reuse: bool, transformer: Transformer, batches: Batches
) -> None:
    adapted = al.adapters.adapt(transformer("gemma"))
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    train(adapted, batches, 6, lr=0.0, proxy=proxy, reuse=reuse, perturb=0.1)
    assert all(torch.equal(before[name], value) for name, value in adapted.model.state_dict().items())


def test_scores_from_the_gradients_of_training_need_no_extra_pass(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    passes: list[int] = []
    adapted.model.register_forward_hook(lambda *_: passes.append(1))
    reallocation = train(adapted, batches, 8, reuse=True)
    assert len(passes) == 8
    assert [choice.step for choice in reallocation.history] == [0, 4]
    assert sum(unit.enabled for unit in adapted.units) == 7


def test_the_first_choice_equals_the_choice_by_grad_norm(transformer: Transformer, batches: Batches) -> None:
    scores = al.adapters.score(al.adapters.adapt(transformer("opt")), batches[:1]).values
    for reuse in (True, False):
        reallocation = train(al.adapters.adapt(transformer("opt")), batches, 1, reuse=reuse, count=1)
        assert reallocation.history[0].enabled == choose(scores, 0.25)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"interval": 0}, "interval must be at least one step"),
        ({"proxy": "magic"}, "no proxy named 'magic'"),
        ({"turn_on": 1.5}, "turn_on must be at least 0 and at most 1"),
        ({"groups": "all"}, "groups must be one of combined, separated, off"),
        ({"proxy": "synflow", "reuse": True}, "'synflow' cannot score by the gradients of training"),
        ({}, "'grad_norm' scores adapters on batches; pass batches"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], complaint: str, transformer: Transformer) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Reallocation(al.adapters.adapt(transformer("opt")), **{"interval": 3, **options})
