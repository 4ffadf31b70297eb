"""Test adapters in transformers: outputs, gradients, configurations and refusals."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora import ConfigurationError
from astralora.adapters.architectures import find_layers
from astralora.adapters.units import LoraUnit

from .conftest import randomise_b

ARCHITECTURES = ["opt", "opt-post-norm", "roberta", "gemma"]
ALL = [*ARCHITECTURES, "bert", "gemma2", "gemma3", "llama", "mistral", "qwen2", "qwen3"]
Transformer = Callable[..., Any]
Batches = list[dict[str, Tensor]]


@pytest.mark.processors
@pytest.mark.parametrize("name", ALL)
def test_new_adapters_do_not_change_the_outputs(name: str, transformer: Transformer, batches: Batches) -> None:
    model = transformer(name)
    before = model(**batches[0]).logits.detach()
    al.adapters.adapt(model)
    assert float((model(**batches[0]).logits.detach() - before).abs().max()) <= 1e-6


@pytest.mark.parametrize("name", ALL)
def test_every_nonzero_adapter_changes_the_outputs(name: str, transformer: Transformer, batches: Batches) -> None:
    model = transformer(name)
    before = model(**batches[0]).logits.detach()
    adapted = al.adapters.adapt(model)
    randomise_b(adapted)
    adapted.set_enabled(False)
    assert torch.equal(model(**batches[0]).logits, before)
    for unit in adapted.units:
        unit.enabled = True
        assert float((model(**batches[0]).logits.detach() - before).abs().max()) > 1e-4, unit.key
        unit.enabled = False


@pytest.mark.parametrize(("name", "count"), [("opt", 29), ("roberta", 29), ("gemma", 32)])
def test_every_layer_has_all_adapters_except_shortcut2_in_layer_0(
    name: str, count: int, transformer: Transformer
) -> None:
    adapted = al.adapters.adapt(transformer(name))
    # Three layers of six projections (seven in Gemma) and four shortcuts, without shortcut2 of layer 0.
    assert len(adapted.units) == count
    assert [unit.key for unit in adapted.units if unit.name == "shortcut2"] == [
        "model_layer_1.shortcut2",
        "model_layer_2.shortcut2",
    ]
    assert ("gate_proj" in {unit.name for unit in adapted.units}) == (name == "gemma")


def test_all_architectures_are_tested() -> None:
    assert {*al.adapters.ARCHITECTURES} == {*ALL} - {"opt-post-norm"}


def reference(model: nn.Module, adapted: Any, tokens: Tensor) -> Tensor:
    """Compute the output of a model with shortcuts by the formulas, layer by layer, from the model's own parts."""
    streams: list[Tensor] = []
    inputs: list[Tensor] = []
    layers = find_layers(model)
    hooks = [
        layers[0].module.register_forward_pre_hook(
            lambda m, a, k: inputs.append(_hidden_states(a, k)), with_kwargs=True
        )
    ]
    with torch.no_grad():
        adapted.set_enabled(False)
        # Masks and positions are those that the model passes to its layers.
        arguments: list[tuple[Any, Any]] = []
        hooks += [
            layer.module.register_forward_pre_hook(lambda m, a, k: arguments.append((a, k)), with_kwargs=True)
            for layer in layers
        ]
        model(input_ids=tokens)
        for hook in hooks:
            hook.remove()
        x = inputs[0]
        for layer, (args, kwargs) in zip(layers, arguments, strict=True):
            shortcut = {name: _projector(adapted, layer.index, name) for name in
                        ("residual1", "residual2", "shortcut1", "shortcut2")}  # fmt: skip
            attention, feed_forward, norms = _parts(layer.module)
            mask = {k: v for k, v in kwargs.items() if k in ("attention_mask", "position_ids", "position_embeddings")}
            mask |= {"attention_mask": args[1]} if len(args) > 1 else {}
            first, second, post_norm = norms
            h = x + shortcut["residual1"](x) + attention(x if post_norm else first(x), mask)
            if streams and shortcut["shortcut2"] is not None:
                h = h + shortcut["shortcut2"](streams[-1])
            if post_norm:
                h = first(h)
            streams.append(h)
            y = h + shortcut["residual2"](h) + feed_forward(h if post_norm else second(h)) + shortcut["shortcut1"](x)
            x = second(y) if post_norm else y
    return x


def _hidden_states(args: Any, kwargs: Any) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _projector(adapted: Any, layer: int, name: str) -> Any:
    units = [unit for unit in adapted.units if (unit.layer, unit.name) == (layer, name)]
    if not units:
        return None
    A, B = units[0].weights
    return lambda x: (16 / 8) * x @ A.T @ B.T  # alpha / r


def _parts(module: Any) -> tuple[Any, Any, tuple[Any, Any, bool]]:
    """Return attention and feed-forward of a layer, its normalisations, and whether these come after the sums."""
    match type(module).__name__:
        case "OPTDecoderLayer":
            post_norm = not module.do_layer_norm_before
            return (
                lambda x, k: module.self_attn(hidden_states=x, **k)[0],
                lambda h: module.fc2(module.activation_fn(module.fc1(h))),
                (module.self_attn_layer_norm, module.final_layer_norm, post_norm),
            )
        case "BertLayer" | "RobertaLayer":
            attention, output = module.attention, module.output
            return (
                lambda x, k: attention.output.dense(attention.self(x, **k)[0]),
                lambda h: output.dense(module.intermediate(h)),
                (attention.output.LayerNorm, output.LayerNorm, True),
            )
        case "Gemma2DecoderLayer" | "Gemma3DecoderLayer":
            return (
                lambda x, k: module.post_attention_layernorm(module.self_attn(hidden_states=x, **k)[0]),
                lambda h: module.post_feedforward_layernorm(module.mlp(h)),
                (module.input_layernorm, module.pre_feedforward_layernorm, False),
            )
        case _:
            return (
                lambda x, k: module.self_attn(hidden_states=x, **k)[0],
                module.mlp,
                (module.input_layernorm, module.post_attention_layernorm, False),
            )


@pytest.mark.processors
@pytest.mark.parametrize("name", ALL)
def test_shortcuts_follow_the_formulas(name: str, transformer: Transformer, batches: Batches) -> None:
    model = transformer(name).double()  # in single precision, rounding differs between processors
    adapted = al.adapters.adapt(model)
    randomise_b(adapted)
    tokens = batches[0]["input_ids"]
    expected = reference(model, adapted, tokens)
    adapted.set_enabled({unit.key: unit.family == "shortcut" for unit in adapted.units})
    outputs: list[Tensor] = []
    hook = find_layers(model)[-1].module.register_forward_hook(lambda m, a, y: outputs.append(y))
    with torch.no_grad():
        model(input_ids=tokens)
    hook.remove()
    assert outputs[0].shape == expected.shape
    assert torch.allclose(outputs[0], expected, rtol=1e-10, atol=1e-10)


def test_only_adapters_and_the_head_of_a_classifier_are_trained(transformer: Transformer) -> None:
    import transformers

    model = transformer("opt")
    adapted = al.adapters.adapt(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapted.trained_state())
    assert all("lora_" in name or "shortcuts" in name for name in trained)
    assert adapted.parameter_counts()[0] == sum(unit.cost for unit in adapted.units)
    with torch.random.fork_rng(devices=[]):
        classifier = transformers.OPTForSequenceClassification(model.config)
    al.adapters.adapt(classifier)
    assert classifier.score.weight.requires_grad


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_that_is_off_keeps_its_weights_and_optimizer_state(
    name: str, transformer: Transformer, batches: Batches
) -> None:
    model = transformer(name)
    adapted = al.adapters.adapt(model)
    randomise_b(adapted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(**batches[0]).loss.backward()
        optimizer.step()

    step()
    off = adapted.unit("model_layer_1.fc1"), adapted.unit("model_layer_1.residual2")
    for unit in off:
        unit.enabled = False
    before = [
        (p, p.clone(), {k: v.clone() for k, v in optimizer.state[p].items()}) for u in off for p in u.parameters()
    ]
    for _ in range(3):
        step()
    for parameter, value, state in before:
        assert torch.equal(parameter, value)
        assert all(torch.equal(optimizer.state[parameter][key], kept) for key, kept in state.items())
    for unit in off:
        unit.enabled = True
    step()
    assert not any(torch.equal(parameter, value) for parameter, value, _ in before)


def test_importance_scales_the_output_of_an_adapter(transformer: Transformer, batches: Batches) -> None:
    model = transformer("opt")
    adapted = al.adapters.adapt(model, {"default": {"disable_projector": True, "importance_alpha": 0.0}})
    before = model(**batches[0]).logits
    randomise_b(adapted)
    assert torch.equal(model(**batches[0]).logits, before), "an importance of 0 has the effect of off"
    unit = adapted.unit("model_layer_2.fc2")
    unit.importance = 0.5
    half = model(**batches[0]).logits
    unit.importance = 1.0
    with torch.no_grad():
        unit.weights[1].mul_(0.5)
    assert torch.allclose(model(**batches[0]).logits, half, atol=1e-5)


def test_the_configuration_sets_rank_scale_and_presence(transformer: Transformer) -> None:
    config = {
        "granularity": "layer",
        "default": {"r": 2, "disable_projector": True},
        "model_layer_0": {
            "q_proj": {"r": 5, "lora_alpha": 20, "lora_dropout": 0.25},
            "k_proj": {"disable_adapter": True},
        },
        "model_layer_2": {"shortcut2": {"disable_projector": False, "r": 3}},
    }
    adapted = al.adapters.adapt(transformer("opt"), config)
    ranks = {unit.key: unit.rank for unit in adapted.units}
    assert ranks["model_layer_0.q_proj"] == 5
    assert ranks["model_layer_1.q_proj"] == 2
    assert "model_layer_0.k_proj" not in ranks
    assert {key: rank for key, rank in ranks.items() if "cut" in key} == {"model_layer_2.shortcut2": 3}
    unit = adapted.unit("model_layer_0.q_proj")
    assert isinstance(unit, LoraUnit)
    module: Any = unit.module
    assert (module.scaling["default"], module.lora_dropout["default"].p) == (20 / 5, 0.25)


def test_the_same_seed_gives_the_same_adapters(transformer: Transformer) -> None:
    states = [al.adapters.adapt(transformer("gemma"), seed=seed).trained_state() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_copy_of_an_adapted_model_is_independent(name: str, transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer(name))
    randomise_b(adapted)
    adapted.model(**batches[0]).loss.backward()
    duplicate = copy.deepcopy(adapted)
    before = adapted.model(**batches[0]).logits
    assert torch.equal(duplicate.model(**batches[0]).logits, before)
    randomise_b(duplicate, seed=4)
    assert torch.equal(adapted.model(**batches[0]).logits, before)
    assert not torch.allclose(duplicate.model(**batches[0]).logits, before)


@pytest.mark.processors
def test_generation_with_a_cache_uses_the_shortcuts(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("opt"))
    randomise_b(adapted)
    tokens = batches[0]["input_ids"]
    with torch.no_grad():
        whole = adapted.model(input_ids=tokens).logits[:, -1]
        first = adapted.model(input_ids=tokens[:, :-1], use_cache=True)
        cache = {key: first[key] for key in first if key in ("past_key_values", "cache")}
        last = adapted.model(input_ids=tokens[:, -1:], **cache).logits[:, -1]
    assert torch.allclose(whole, last, atol=1e-4)


def test_trained_adapters_are_restored_and_others_refused(transformer: Transformer, batches: Batches) -> None:
    adapted = al.adapters.adapt(transformer("roberta"))
    randomise_b(adapted)
    state = {name: value.clone() for name, value in adapted.trained_state().items()}
    again = al.adapters.adapt(transformer("roberta"), seed=5)
    again.load_trained_state(state)
    assert torch.equal(again.model(**batches[0]).logits, adapted.model(**batches[0]).logits)
    with pytest.raises(ConfigurationError, match="do not match the adapters of this model"):
        al.adapters.adapt(transformer("roberta"), {"default": {"r": 2}}).load_trained_state(state)


@pytest.mark.parametrize(
    ("name", "options", "config", "complaint"),
    [
        ("opt", {}, {"all_layers": {"gate_proj": {"r": 2}}}, "all_layers.gate_proj does not exist"),
        ("opt", {}, {"granularity": "layer", "model_layer_3": {"fc1": {"r": 2}}}, "the model has 3 layers"),
        ("opt", {}, {"granularity": "layer", "model_layer_0": {"shortcut2": {"disable_projector": False}}},
         "no layer comes before layer 0"),
        ("opt", {"layerdrop": 0.5}, {}, "set layerdrop to 0"),
        ("roberta", {"chunk_size_feed_forward": 2}, {}, "set chunk_size_feed_forward to 0"),
    ],
)  # fmt: skip
def test_adapters_that_the_model_cannot_have_are_refused(
    name: str, options: dict[str, Any], config: dict[str, Any], complaint: str, transformer: Transformer
) -> None:
    model = transformer(name, **options)
    with pytest.raises(ConfigurationError, match=complaint):
        al.adapters.adapt(model, config)
    assert all(parameter.requires_grad for parameter in model.parameters()), "the model is unchanged"


def test_models_that_cannot_be_adapted_are_refused(transformer: Transformer) -> None:
    with pytest.raises(ConfigurationError, match="Identity has no layers that adapters support; supported are opt"):
        al.adapters.adapt(nn.Identity())
    model = transformer("opt")
    al.adapters.adapt(model)
    with pytest.raises(ConfigurationError, match="adapters already"):
        al.adapters.adapt(model)
    model = transformer("gemma")
    model.model.gradient_checkpointing = True
    with pytest.raises(ConfigurationError, match="gradient checkpointing"):
        al.adapters.adapt(model)
