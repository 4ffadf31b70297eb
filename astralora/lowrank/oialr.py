"""OIALR: training that goes over from whole weights to their mixing within bases that have settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from ..common.errors import ConfigurationError
from .bases import BasisWatch, check_share, decompose, kept_rank
from .factors import Weight
from .moments import check_moments, replace_parameter, rotate_moments
from .processes import from_first_rank, rewrap, unwrap
from .weights import find_weights

__all__ = ["OIALR", "Size"]


@dataclass(frozen=True, slots=True)
class Size:
    """Numbers in a model.

    Attributes:
        trainable: those that are trained at present.
        total: all at present, fixed bases included.
        whole: all, were every weight whole.
    """

    trainable: int
    total: int
    whole: int


class OIALR:
    """Orthogonality-informed adaptive low-rank training (Coquelin et al., ECAI 2024, arXiv 2401.08505).

    The bases of a weight's singular value decomposition settle early in training; what goes on is the mixing between
    them. From step ``delay`` on, weights are U Sigma V^T, with U and V fixed and Sigma an r x r matrix that is trained.
    Then, and every ``stability_frequency`` steps after,

        Sigma = U' s V'^T,   U <- U U',   V <- V V',   Sigma <- diag(s),

    which leaves the weight as it was, and what is small is cut: all from the first s_i < ``sigma_cutoff_fraction`` s_0
    on, but no more than half of them at a time, and never below ``min_rank``. These updates begin with the last weights
    of the model, and reach ``network_layer_perc_step`` of all weights further at each.

    The optimizer's groups follow: Sigma takes the place of the weight, and what is remembered is turned into the new
    bases, m <- U'^T m V'. A momentum sees no change at all; for second moments see
    `astralora.lowrank.moments`.

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        oialr = al.lowrank.OIALR(model, optimizer, delay=1000, stability_frequency=500)
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
            oialr.step()

    Weights of `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` and `nn.MultiheadAttention` are meant, unless they are shared,
    frozen, or have no more than ``min_rank`` rows or columns; `left_whole` says which are not. Modules stay what and
    where they are, and ``module.weight`` is the weight as before; it is multiplied out for every pass, so that
    what becomes less is what is trained, remembered and sent between processes, and not the arithmetic.

    A `DistributedDataParallel` model is given as such, and follows; what the first process decomposes goes for all.
    Values that are loaded into ``model`` may be of any ranks; weights and groups take their shape.

    Args:
        model: changed in place.
        optimizer: trains it; None for a model that values are only loaded into.
        delay: steps with whole weights.
        stability_frequency: steps between updates.
        sigma_cutoff_fraction: of the largest singular value.
        min_rank: the floor.
        network_layer_perc_step: share of the weights that join the updates at each, from the last on.
        keep_first_layer: leave the first weight of the model whole.
        keep_last_layer: leave the last weight of the model whole.
        criterion: weights become factored all at ``delay`` (``"time"``), or each when its bases are found to be
            settled at two updates in a row (``"stability"``), which takes a decomposition of each at every update, and
            the memory for its bases.
        stability_threshold: overlap of bases with those of the update before, from which on they count as settled.

    Attributes:
        weights: those that are, or are going to be, factored, in order.
        left_whole: why others are not, by name.
        updates: so far.

    Raises:
        ConfigurationError: for options that mean nothing, or a model with nothing to factorise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | None = None,
        *,
        delay: int = 1000,
        stability_frequency: int = 500,
        sigma_cutoff_fraction: float = 0.1,
        min_rank: int = 8,
        network_layer_perc_step: float = 0.1,
        keep_first_layer: bool = False,
        keep_last_layer: bool = True,
        criterion: Literal["time", "stability"] = "time",
        stability_threshold: float = 0.9,
    ) -> None:
        self.delay = _whole("delay", delay, least=0)
        self.stability_frequency = _whole("stability_frequency", stability_frequency)
        self.min_rank = _whole("min_rank", min_rank)
        self.sigma_cutoff_fraction = check_share("sigma_cutoff_fraction", sigma_cutoff_fraction)
        self.network_layer_perc_step = check_share("network_layer_perc_step", network_layer_perc_step)
        if self.network_layer_perc_step == 0:
            raise ConfigurationError("network_layer_perc_step must be above 0, or no weight would ever join")
        if criterion not in ("time", "stability"):
            raise ConfigurationError(f"criterion must be 'time' or 'stability', not {criterion!r}")
        self.criterion = criterion
        threshold = check_share("stability_threshold", stability_threshold)
        self._model, self._ddp = unwrap(model)
        self._optimizer = optimizer
        self.weights, self.left_whole = find_weights(
            self._model, min_rank=min_rank, keep_first_layer=keep_first_layer, keep_last_layer=keep_last_layer
        )
        if not self.weights:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_whole.items())
            raise ConfigurationError(f"there is no weight to factorise in this model ({reasons or 'no such layer'})")
        self._watches = {weight.name: BasisWatch(threshold) for weight in self.weights}
        self._steps = self.updates = 0
        self._replaced = False
        self._model.register_load_state_dict_pre_hook(self._before_loading)
        self._model.register_load_state_dict_post_hook(self._after_loading)

    @torch.no_grad()
    def step(self) -> bool:
        """Go on by one step of training; called after the optimizer's.

        Returns:
            Whether parameters of the model were replaced: whoever else holds on to them, such as an average of the
            weights, has to take them up anew.

        Raises:
            ConfigurationError: in the first step, for an optimizer that remembers what cannot be turned.
        """
        if self._optimizer is None:
            raise ConfigurationError("a model can be trained only with its optimizer; give it to OIALR")
        if self._steps == 0:
            check_moments(self._optimizer, [weight.trained for weight in self.weights])
        self._steps += 1
        since = self._steps - self.delay
        if since >= 0 and since % self.stability_frequency == 0:
            self._update()
        return self._settle()

    @property
    def size(self) -> Size:
        """Trainable and total numbers of the model, and what there would be with whole weights."""
        parameters = list(self._model.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        gone = sum(weight.rows * weight.columns - weight.size for weight in self.weights)
        return Size(sum(p.numel() for p in parameters if p.requires_grad), total, total + gone)

    @property
    def ranks(self) -> dict[str, int]:
        """Of all weights, by name; the smaller side of those that are whole."""
        return {weight.name: weight.rank for weight in self.weights}

    @property
    def overlaps(self) -> dict[str, float | None]:
        """Of the bases with those of the update before, by name; None before there were two."""
        return {name: watch.overlap for name, watch in self._watches.items()}

    def state_dict(self) -> dict[str, Any]:
        """Steps and updates so far, ranks, and what is known of the bases; the factors are in the model's."""
        return {
            "steps": self._steps,
            "updates": self.updates,
            "ranks": {weight.name: weight.rank if weight.is_factored else None for weight in self.weights},
            "watches": {name: watch.state_dict() for name, watch in self._watches.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned, and make room for factors of those ranks.

        Model and optimizer are loaded before or after.

        Raises:
            ConfigurationError: it is of another model; nothing was changed.
        """
        mine, theirs = set(self._watches), set(state["ranks"])
        if mine != theirs:
            raise ConfigurationError(
                f"the saved state is of other weights than this model's: "
                f"{', '.join(sorted(mine ^ theirs))} on one side only"
            )
        self._steps, self.updates = state["steps"], state["updates"]
        for weight in self.weights:
            self._watches[weight.name].load_state_dict(state["watches"][weight.name])
            # Values that have been loaded already have this shape, and stay.
            self._reshape(weight, state["ranks"][weight.name])
        self._settle()

    # -- updates ---------------------------------------------------------------------------

    def _update(self) -> None:
        self.updates += 1
        reached = ceil(min(1.0, self.updates * self.network_layer_perc_step) * len(self.weights))
        for weight in reversed(self.weights):
            if self.criterion == "time" and not weight.is_factored:
                self._factorise(weight, *self._decompose(weight.trained.flatten(1)))
        for weight in self.weights[-reached:]:
            if weight.is_factored:
                self._refresh(weight)
            else:
                self._look_at(weight)

    def _look_at(self, weight: Weight) -> None:
        """Factorise a weight whose bases have settled."""
        watch, factors = self._watches[weight.name], self._decompose(weight.trained.flatten(1))
        U, _, V = factors
        watch.look(U.to(weight.trained), V.to(weight.trained))
        if watch.settled:
            watch.forget()
            self._factorise(weight, *factors)
            self._refresh(weight)

    def _factorise(self, weight: Weight, U: Tensor, s: Tensor, V: Tensor) -> None:
        before = weight.trained
        self._turned(before, weight.factorise(U, torch.diag(s), V), U, V)

    def _refresh(self, weight: Weight) -> None:
        """Fold Sigma's own bases into U and V, and cut what is small."""
        before, (U, V) = weight.trained, weight.bases
        P, s, Q = self._decompose(before)
        # The overlap of U V^T with (U P)(V Q)^T, in factored form.
        self._watches[weight.name].note(float((P * Q).sum()) / len(s))
        rank = kept_rank(s, self.sigma_cutoff_fraction, self.min_rank)
        P, s, Q = P[:, :rank], s[:rank], Q[:, :rank]
        # Multiplied in double precision: the bases stay orthonormal over any number of updates.
        U_new, V_new = U.double() @ P, V.double() @ Q
        if rank < len(before):
            after = weight.factorise(U_new, torch.diag(s), V_new)
        else:
            after = before
            for factor, value in ((U, U_new), (before, torch.diag(s)), (V, V_new)):
                factor.copy_(value)
        self._turned(before, after, P, Q)

    def _decompose(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, s, V = from_first_rank(self._ddp, *decompose(matrix))
        return U, s, V

    def _turned(self, before: nn.Parameter, after: nn.Parameter, left: Tensor, right: Tensor) -> None:
        after.grad = None  # which was about the old bases
        self._replaced |= after is not before
        if self._optimizer is not None:
            rotate_moments(self._optimizer, before, after, left, right)

    # -- shapes ----------------------------------------------------------------------------

    def _before_loading(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:  # noqa: ARG002
        for weight in self.weights:
            holder, dot, attribute = weight.name.rpartition(".")
            place = f"{prefix}{holder}{dot}"
            sigma = state.get(f"{place}parametrizations.{attribute}.original1")
            if sigma is not None:
                self._reshape(weight, len(sigma))
            elif f"{place}{attribute}" in state:
                self._reshape(weight, None)

    def _after_loading(self, *_: Any) -> None:
        self._settle()

    def _reshape(self, weight: Weight, rank: int | None) -> None:
        before = weight.trained
        after = weight.reshape(rank)
        if after is not before:
            self._replaced = True
            if self._optimizer is not None:
                replace_parameter(self._optimizer, before, after)

    def _settle(self) -> bool:
        """Tell those who have to know of replaced parameters."""
        replaced, self._replaced = self._replaced, False
        if replaced and self._ddp is not None:
            rewrap(self._ddp)
        return replaced


def _whole(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
