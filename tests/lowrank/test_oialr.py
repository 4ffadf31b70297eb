"""Test OIALR: factorisation, refreshes, cuts, moments and saved states."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import astralora as al
from astralora import ConfigurationError
from astralora.lowrank import OIALR

from .conftest import Everything, linear, square_net

pytestmark = pytest.mark.processors

ALWAYS: dict[str, Any] = {"delay": 0, "stability_frequency": 1, "network_layer_perc_step": 1.0, "min_rank": 2}


def convert(model: nn.Module, **options: Any) -> OIALR:
    """Factorise every weight of a model, and return its OIALR."""
    oialr = OIALR(model, optim.SGD(model.parameters(), lr=0), **{**ALWAYS, "sigma_cutoff_fraction": 0.0, **options})
    oialr.step()
    return oialr


def train(model: nn.Module, optimizer: optim.Optimizer, oialr: OIALR | None, steps: int, seed: int = 0) -> None:
    """Train a regression on random data, (batch, 24) -> (batch, 3), which depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = (torch.randn(16, n, dtype=torch.float64, generator=generator) for n in (24, 3))
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if oialr is not None:
            oialr.step()


# -- conversion -------------------------------------------------------------------------------


def test_factorising_hardly_changes_the_outputs(everything: Everything, images: Tensor) -> None:
    before = everything(images).detach()
    oialr = convert(everything)
    assert oialr.ranks == {
        "conv2d.weight": 12,
        "conv1d.weight": 16,
        "attention.in_proj_weight": 16,
        "attention.out_proj.weight": 16,
        "linear.weight": 16,
    }
    assert all(weight.is_factored for weight in oialr.weights)
    assert float((everything(images).detach() - before).abs().max()) <= 1e-5


def test_factorising_keeps_the_fast_path_of_attention(everything: Everything, images: Tensor) -> None:
    x = torch.randn(2, 5, 16)
    attention = everything.attention.eval()
    with torch.no_grad():
        before = attention(x, x, x)
        convert(everything)
        after = attention(x, x, x)
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_queries_keys_and_values_of_different_sizes_are_factored(
    a_throwaway_global_random_state: Any,
) -> None:
    model = nn.MultiheadAttention(8, 2, kdim=6, vdim=5)
    oialr = OIALR(model, min_rank=2, keep_last_layer=False)
    assert list(oialr.ranks) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_the_gradient_of_sigma_is_the_weight_gradient_between_the_bases(everything: Everything, images: Tensor) -> None:
    everything.double()
    (everything(images.double()).square().sum()).backward()
    gradients = [weight.trained.grad for weight in OIALR(everything, min_rank=2).weights]
    oialr = convert(everything)
    everything.zero_grad()
    everything(images.double()).square().sum().backward()
    for weight, G in zip(oialr.weights, gradients, strict=True):
        assert G is not None
        U, V = weight.bases
        torch.testing.assert_close(weight.trained.grad, U.T @ G.flatten(1) @ V)


def test_the_bases_get_no_gradient_and_no_update(everything: Everything, images: Tensor) -> None:
    oialr = convert(everything)
    optimizer = optim.SGD(everything.parameters(), lr=0.1, weight_decay=0.1)
    bases = [basis.clone() for weight in oialr.weights for basis in weight.bases]
    everything(images).square().sum().backward()
    optimizer.step()
    assert all(basis.grad is None and not basis.requires_grad for weight in oialr.weights for basis in weight.bases)
    now = [basis for weight in oialr.weights for basis in weight.bases]
    assert all(torch.equal(before, after) for before, after in zip(bases, now, strict=True))


def test_autocast_multiplies_the_factors_in_full_precision(everything: Everything) -> None:
    convert(everything)
    weight = everything.linear.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(everything.linear.weight, weight)


# -- refresh ----------------------------------------------------------------------------------


def disturb(oialr: OIALR, generator: torch.Generator) -> None:
    """Add noise to Sigma, so that it is not diagonal any more, as after training."""
    with torch.no_grad():
        for weight in oialr.weights:
            weight.trained.add_(0.3 * torch.randn(weight.trained.shape, generator=generator).to(weight.trained))


def matrices(oialr: OIALR) -> list[Tensor]:
    return [getattr(weight.module, weight.attribute).detach().flatten(1).clone() for weight in oialr.weights]


def test_a_refresh_without_a_cut_leaves_weights_as_they_are_and_bases_orthonormal(
    everything: Everything, generator: torch.Generator
) -> None:
    oialr = convert(everything)
    for _ in range(30):
        disturb(oialr, generator)
        before = matrices(oialr)
        assert not oialr.step()
        for old, new, weight in zip(before, matrices(oialr), oialr.weights, strict=True):
            assert float((old - new).norm() / old.norm()) <= 1e-5
            core = weight.trained.detach()
            assert torch.equal(core, torch.diag(core.diagonal()))
    for weight in oialr.weights:
        for basis in weight.bases:
            eye = torch.eye(weight.rank)
            assert float((basis.T @ basis - eye).abs().max()) <= 1e-5


def test_a_cut_changes_the_weight_by_the_dropped_singular_values(generator: torch.Generator) -> None:
    model = square_net()
    oialr = convert(model)
    disturb(oialr, generator)
    before = matrices(oialr)
    oialr.sigma_cutoff_fraction = 0.5
    assert oialr.step()
    for old, new, rank in zip(before, matrices(oialr), oialr.ranks.values(), strict=True):
        s = torch.linalg.svdvals(old)
        assert 12 <= rank < 24
        assert bool(s[rank] < 0.5 * s[0])
        assert float((old - new).norm()) == pytest.approx(float(s[rank:].square().sum().sqrt()), rel=1e-9)


def test_a_nearly_flat_spectrum_is_halved_at_every_update_down_to_the_floor(
    a_throwaway_global_random_state: Any,
) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2))
    s = torch.full((32,), 0.89)
    s[0] = 1
    with torch.no_grad():
        linear(model, 0).weight.copy_(torch.diag(s))
    optimizer = optim.SGD(model.parameters(), lr=0)
    oialr = OIALR(model, optimizer, **{**ALWAYS, "min_rank": 3, "sigma_cutoff_fraction": 0.9})
    ranks: list[int] = []
    for _ in range(6):
        oialr.step()
        ranks += oialr.ranks.values()
    assert ranks == [16, 8, 4, 3, 3, 3]


def test_updates_include_more_weights_each_time_from_the_last_on(a_throwaway_global_random_state: Any) -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))
    options = {**ALWAYS, "delay": 2, "stability_frequency": 3, "network_layer_perc_step": 0.25}
    oialr = OIALR(model, optim.SGD(model.parameters(), lr=0), sigma_cutoff_fraction=0.999, **options)
    found = []
    for _ in range(12):
        oialr.step()
        found.append(list(oialr.ranks.values()))
    # Four weights without the last layer: one more joins at steps 2, 5, 8 and 11.
    assert found[0] == [16, 16, 16, 16]
    assert found[1] == found[3] == [16, 16, 16, 8]
    assert found[4] == [16, 16, 8, 4]
    assert found[7] == [16, 8, 4, 2]
    assert found[10] == [8, 4, 2, 2]


def test_nothing_is_factored_before_the_delay(a_throwaway_global_random_state: Any) -> None:
    model = square_net()
    oialr = OIALR(model, optim.SGD(model.parameters(), lr=0), delay=3, stability_frequency=1, min_rank=2)
    changed = [oialr.step() for _ in range(4)]
    assert changed[:3] == [False, False, True]


# -- which weights ----------------------------------------------------------------------------


def test_first_and_last_layers_stay_whole_if_requested(everything: Everything) -> None:
    def names(**options: Any) -> list[str]:
        return [name.partition(".")[0] for name in OIALR(everything, min_rank=2, **options).ranks]

    assert names() == ["conv2d", "conv1d", "attention", "attention", "linear"]
    assert names(keep_first_layer=True)[0] == "conv1d"
    assert names(keep_last_layer=False)[-1] == "head"


def test_shared_frozen_and_narrow_weights_stay_whole_with_a_reason(a_throwaway_global_random_state: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 16)
            self.frozen = nn.Linear(16, 16).requires_grad_(False)
            self.narrow = nn.Linear(16, 4)
            self.wide = nn.Linear(4, 16)
            self.middle = nn.Linear(16, 16)
            self.unembedding = nn.Linear(16, 20, bias=False)
            self.unembedding.weight = self.embedding.weight

    oialr = OIALR(Tied(), min_rank=4, keep_last_layer=False)
    assert list(oialr.ranks) == ["middle.weight"]
    assert oialr.left_whole == {
        "frozen.weight": "it is frozen",
        "narrow.weight": "its smaller side, 4, is no more than the least rank, 4",
        "wide.weight": "its smaller side, 4, is no more than the least rank, 4",
        "unembedding.weight": "it is shared with another module",
    }


def test_a_device_layer_is_not_factored(a_throwaway_global_random_state: Any, simulated: Any) -> None:
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3))
    al.attach(model, {"2": simulated("matvec", 12, 10)})
    assert list(OIALR(model, min_rank=2).ranks) == ["0.weight"]


# -- stability --------------------------------------------------------------------------------


def test_by_stability_each_weight_is_factored_when_its_bases_have_settled(generator: torch.Generator) -> None:
    model = square_net()
    optimizer = optim.SGD(model.parameters(), lr=0)
    oialr = OIALR(model, optimizer, criterion="stability", sigma_cutoff_fraction=0.0, **ALWAYS)
    factored = []
    for step in range(6):
        with torch.no_grad():
            if step < 3:  # the second weight changes its bases up to step 2
                linear(model, 2).weight.copy_(torch.randn(24, 24, dtype=torch.float64, generator=generator))
            linear(model, 0).weight.mul_(1.1)  # scaling changes no basis
        oialr.step()
        factored.append([weight.is_factored for weight in oialr.weights])
    # Two overlaps in a row need three updates: steps 0 to 2, and 2 to 4.
    assert factored == [[False, False], [False, False], [True, False], [True, False], [True, True], [True, True]]
    assert oialr.overlaps["0.weight"] == pytest.approx(1)


# -- moments, learning rates -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}])
def test_sgd_with_momentum_trains_factored_weights_as_whole_ones(options: dict[str, Any]) -> None:
    trained = []
    for factored in (False, True):
        model = square_net()
        optimizer = optim.SGD(model.parameters(), lr=0.05, **options)
        oialr = None
        if factored:
            oialr = OIALR(model, optimizer, **{**ALWAYS, "delay": 7, "sigma_cutoff_fraction": 0.0})
        train(model, optimizer, oialr, steps=30)
        trained.append([module.weight.detach() for module in model if isinstance(module, nn.Linear)])
    for whole_weight, factored_weight in zip(*trained, strict=True):
        torch.testing.assert_close(factored_weight, whole_weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("criterion", ["time", "stability"])
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: optim.SGD(parameters, lr=0.0, momentum=0.9),
        lambda parameters: optim.AdamW(parameters, lr=0.0),
        lambda parameters: optim.Adam(parameters, lr=0.0, amsgrad=True),
        lambda parameters: optim.RMSprop(parameters, lr=0.0, centered=True, momentum=0.5),
    ],
    ids=["sgd", "adamw", "amsgrad", "rmsprop"],
)
def test_a_learning_rate_of_0_changes_no_weight(make: Callable[[Any], optim.Optimizer], criterion: Any) -> None:
    model = square_net()
    before = [module.weight.detach().clone() for module in model if isinstance(module, nn.Linear)]
    optimizer = make(model.parameters())
    oialr = OIALR(model, optimizer, criterion=criterion, sigma_cutoff_fraction=0.0, **ALWAYS)
    train(model, optimizer, oialr, steps=5)
    assert all(weight.is_factored for weight in oialr.weights)
    after = [module.weight for module in model if isinstance(module, nn.Linear)]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def test_sigma_is_trained_in_the_group_of_its_weight() -> None:
    model = square_net()
    slow, fast = list(model[0].parameters()), [*model[2].parameters(), *model[4].parameters()]
    optimizer = optim.AdamW([{"params": slow, "lr": 0.0}, {"params": fast, "lr": 0.01}])
    oialr = OIALR(model, optimizer, **{**ALWAYS, "sigma_cutoff_fraction": 0.3})
    train(model, optimizer, oialr, steps=1)
    groups = [set(map(id, group["params"])) for group in optimizer.param_groups]
    first, second = oialr.weights
    assert id(first.trained) in groups[0]
    assert id(second.trained) in groups[1]
    assert {id(p) for p in model.parameters() if p.requires_grad} == groups[0] | groups[1]
    assert set(map(id, optimizer.state)) <= groups[0] | groups[1], "no state is left of replaced weights"
    before = matrices(oialr)
    oialr.delay = 10**6
    train(model, optimizer, oialr, steps=3)
    moved = [not torch.equal(old, new) for old, new in zip(before, matrices(oialr), strict=True)]
    assert moved == [False, True]


# -- sizes ------------------------------------------------------------------------------------


def test_size_counts_trainable_total_and_whole_parameters() -> None:
    model = square_net()
    whole = sum(parameter.numel() for parameter in model.parameters())
    oialr = OIALR(model, optim.SGD(model.parameters(), lr=0), **{**ALWAYS, "sigma_cutoff_fraction": 0.999})
    assert (oialr.size.trainable, oialr.size.total, oialr.size.whole) == (whole, whole, whole)
    oialr.step()
    rest = whole - 2 * 24 * 24
    assert list(oialr.ranks.values()) == [12, 12]
    assert oialr.size.trainable == rest + 2 * 12 * 12
    assert oialr.size.total == rest + 2 * (12 * 12 + 2 * 24 * 12)
    assert oialr.size.whole == whole


# -- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["oialr first", "model first", "optimizer first"])
@pytest.mark.parametrize("criterion", ["time", "stability"])
def test_a_fresh_model_continues_exactly_after_the_ranks_have_changed(order: str, criterion: Any) -> None:
    def fresh(seed: int) -> tuple[nn.Module, optim.Optimizer, OIALR]:
        model = square_net(seed)
        optimizer = optim.AdamW(model.parameters(), lr=0.003)
        options = {
            **ALWAYS,
            "delay": 3,
            "stability_frequency": 4,
            "sigma_cutoff_fraction": 0.6,
            "network_layer_perc_step": 0.2,
        }
        return model, optimizer, OIALR(model, optimizer, criterion=criterion, stability_threshold=0.0, **options)

    model, optimizer, oialr = first = fresh(0)
    train(model, optimizer, oialr, steps=14)
    assert min(oialr.ranks.values()) < 24
    saved = copy.deepcopy([part.state_dict() for part in first])
    second = fresh(1)
    places = {"oialr first": (2, 0, 1), "model first": (0, 1, 2), "optimizer first": (1, 2, 0)}[order]
    for place in places:
        second[place].load_state_dict(saved[place])
    ranks = oialr.ranks
    assert second[2].ranks == ranks
    for parts in (first, second):
        train(*parts, steps=10, seed=5)
    assert second[2].ranks == oialr.ranks != ranks, "updates continue"
    for ours, theirs in zip(second[0].state_dict().items(), model.state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])


def test_a_model_loads_factors_of_any_rank_and_whole_weights(a_throwaway_global_random_state: Any) -> None:
    trained = square_net()
    whole = {name: value.clone() for name, value in trained.state_dict().items()}
    oialr = convert(trained)
    oialr.sigma_cutoff_fraction = 0.999
    oialr.step()
    x = torch.randn(4, 24, dtype=torch.float64)
    model = square_net(1)
    OIALR(model, min_rank=2)
    model.load_state_dict(trained.state_dict())
    assert torch.equal(model(x), trained(x))
    model.load_state_dict(whole)
    assert {name for name, _ in model.named_parameters()} == set(whole)
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_training_continues_from_values_saved_before_the_ranks_changed() -> None:
    model = square_net()
    optimizer = optim.AdamW(model.parameters(), lr=0.003)
    oialr = OIALR(model, optimizer, **{**ALWAYS, "delay": 3, "stability_frequency": 2, "sigma_cutoff_fraction": 0.9})
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, oialr, steps=4)
    assert all(weight.is_factored for weight in oialr.weights)
    model.load_state_dict(best)
    assert all(weight.trained not in optimizer.state for weight in oialr.weights), "the state was of other matrices"
    train(model, optimizer, oialr, steps=4)
    assert all(weight.is_factored for weight in oialr.weights), "updates continue"


def test_the_state_of_another_model_is_refused(everything: Everything) -> None:
    oialr = OIALR(square_net(), min_rank=2)
    before = oialr.state_dict()
    with pytest.raises(ConfigurationError, match=r"0\.weight.* on one side only"):
        oialr.load_state_dict(OIALR(everything, min_rank=2).state_dict())
    assert oialr.state_dict() == before


def test_torch_restores_a_plain_model(everything: Everything, images: Tensor) -> None:
    oialr = convert(everything)
    before = everything(images)
    for weight in oialr.weights:
        nn.utils.parametrize.remove_parametrizations(weight.module, weight.attribute, leave_parametrized=True)
    assert set(everything.state_dict()) == set(Everything().state_dict())
    torch.testing.assert_close(everything(images), before)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"delay": -1}, "delay must be a whole number of at least 0, not -1"),
        ({"stability_frequency": 0}, "stability_frequency must be a whole number of at least 1"),
        ({"min_rank": 0}, "min_rank must be a whole number"),
        ({"sigma_cutoff_fraction": 1.5}, "sigma_cutoff_fraction must be between 0 and 1, not 1.5"),
        ({"network_layer_perc_step": 0.0}, "network_layer_perc_step must be above 0"),
        ({"criterion": "luck"}, "criterion must be 'time' or 'stability', not 'luck'"),
        ({"stability_threshold": 2}, "stability_threshold must be between 0 and 1"),
        ({"min_rank": 24}, "no weight to factorise in this model .*smaller side, 24"),
    ],
)
def test_options_outside_of_their_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        OIALR(square_net(), **options)


def test_a_step_without_an_optimizer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="training needs the optimizer"):
        OIALR(square_net()).step()
