"""Find the weights of a model that can be trained between orthogonal bases."""

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
    # One matrix for queries, keys and values, or three if their sizes differ.
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}


def find_weights(
    model: nn.Module, *, min_rank: int, keep_first_layer: bool, keep_last_layer: bool
) -> tuple[list[Weight], dict[str, str]]:
    """Find the matrices of a model to factorise, and the reasons why others stay whole.

    Args:
        model: any model of torch modules.
        min_rank: a matrix stays whole if its smaller side is at most this number.
        keep_first_layer: leave the first matrix whole.
        keep_last_layer: leave the last matrix whole.

    Returns:
        The weights in the order of the model, and by name a reason for each matrix of a supported layer that stays
        whole.
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
    """Report whether an attribute is a parameter without parametrization, or one that an earlier OIALR factored."""
    if parametrize.is_parametrized(module, attribute):
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        parametrization_list = parametrizations[attribute]
        assert isinstance(parametrization_list, nn.ModuleList)
        return isinstance(parametrization_list[0], Factored)
    return isinstance(getattr(module, attribute, None), nn.Parameter)
