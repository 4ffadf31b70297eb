"""Which weights of a model can be trained between orthogonal bases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize

from .factors import Factored, Weight

__all__ = ["find_weights"]

_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    # One matrix for queries, keys and values, or one for each where they are of different sizes.
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}


def find_weights(
    model: nn.Module, *, min_rank: int, keep_first_layer: bool, keep_last_layer: bool
) -> tuple[list[Weight], dict[str, str]]:
    """The matrices of a model that are worth factorising, in order, and why others are not.

    Args:
        model: of any torch modules.
        min_rank: matrices whose smaller side is no more are left alone.
        keep_first_layer: leave the first alone.
        keep_last_layer: leave the last alone.

    Returns:
        The weights, and a reason for each of the kinds considered that is left as it is, by name.
    """
    found = list(_candidates(model))
    uses = Counter(
        id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False) if parameter is not None
    )
    kept, reasons = [], {}
    for place, weight in enumerate(found):
        if keep_first_layer and place == 0:
            reasons[weight.name] = "it is the first"
        elif keep_last_layer and place == len(found) - 1:
            reasons[weight.name] = "it is the last"
        elif uses[id(weight.trained)] > 1:
            reasons[weight.name] = "it is shared with another module"
        elif not weight.trained.requires_grad:
            reasons[weight.name] = "it is frozen"
        elif weight.full_rank <= min_rank:
            reasons[weight.name] = f"its smaller side, {weight.full_rank}, is no more than the least rank, {min_rank}"
        else:
            kept.append(weight)
    return kept, reasons


def _candidates(model: nn.Module) -> Iterator[Weight]:
    for prefix, module in model.named_modules():
        if type(module).__name__ == "ParametrizationList" or isinstance(module, Factored):
            continue
        for kind, attributes in _ATTRIBUTES.items():
            if isinstance(module, kind):
                yield from (
                    Weight(module, attribute, f"{prefix}.{attribute}" if prefix else attribute)
                    for attribute in attributes
                    if _is_plain(module, attribute)
                )


def _is_plain(module: nn.Module, attribute: str) -> bool:
    """A parameter of the module's own, of none of the user's parametrizations; or factored by an earlier OIALR."""
    if parametrize.is_parametrized(module, attribute):
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        return isinstance(parametrizations[attribute][0], Factored)  # type: ignore[index]
    return isinstance(getattr(module, attribute, None), nn.Parameter)
