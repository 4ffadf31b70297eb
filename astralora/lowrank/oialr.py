"""Train whole weights first, and later small matrices between settled bases (OIALR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from ..common.checks import check_share, check_whole
from ..common.errors import ConfigurationError
from .bases import BasisWatch, decompose, kept_rank
from .distributed import from_first_rank, rewrap, unwrap
from .factors import Weight
from .moments import check_moments, replace_parameter, rotate_moments
from .weights import find_weights

__all__ = ["OIALR", "Size"]


@dataclass(frozen=True, slots=True)
class Size:
    """Hold the numbers of parameters in a model.

    Attributes:
        trainable: parameters trained at present.
        total: all parameters at present, fixed bases included.
        whole: all parameters with every weight whole.
    """

    trainable: int
    total: int
    whole: int


class OIALR:
    """Train by orthogonality-informed adaptive low-rank training (Coquelin et al., ECAI 2024, arXiv 2401.08505).

    The bases of a weight's singular value decomposition settle early in training, and the mixing between them
    continues. From step ``delay`` on, weights are U Sigma V^T, with U and V fixed and Sigma a trained r x r matrix.
    At that step, and every ``stability_frequency`` steps after it, an update sets

        Sigma = U' s V'^T,   U <- U U',   V <- V V',   Sigma <- diag(s),

    which does not change the weight. Then it cuts small singular values: all from the first s_i <
    ``sigma_cutoff_fraction`` s_0 on, but at most half of them at a time, and never below ``min_rank``. The first update
    changes only the last weights of the model. Each further update also includes the next share
    ``network_layer_perc_step`` of all weights.

    In the optimizer's groups, Sigma takes the place of the weight, and the optimizer's state is transformed into the
    new bases, m <- U'^T m V'. This is exact for momentum; for second moments see `astralora.lowrank.moments`.

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        oialr = al.lowrank.OIALR(model, optimizer, delay=1000, stability_frequency=500)
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
            oialr.step()

    OIALR factorises the weights of `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` and `nn.MultiheadAttention`, except those that
    are shared, frozen, or have at most ``min_rank`` rows or columns; `left_whole` lists the exceptions. Modules keep
    their class and their place, and ``module.weight`` still returns the weight. The weight is multiplied out in every
    pass. Fewer numbers are trained, stored by the optimizer and sent between processes, but each pass needs no less
    arithmetic.

    For data-parallel training, pass the `DistributedDataParallel` wrapper as ``model``. All processes use the
    decompositions of the first one. Values loaded into ``model`` may have any ranks; the shapes of weights and groups
    are changed to the shapes of the values.

    Args:
        model: model to change in place.
        optimizer: optimizer that trains the model; None for a model that is not trained, only loaded.
        delay: number of steps before weights are factored.
        stability_frequency: number of steps between updates.
        sigma_cutoff_fraction: cutoff as a share of the largest singular value.
        min_rank: smallest rank.
        network_layer_perc_step: share of the weights added to the updates each time, from the last weight on.
        keep_first_layer: leave the first weight of the model whole.
        keep_last_layer: leave the last weight of the model whole.
        criterion: ``"time"`` factorises all weights at ``delay``. ``"stability"`` factorises each weight when its bases
            have settled at two updates in a row, which costs a decomposition of each weight at every update, and memory
            for its bases.
        stability_threshold: smallest overlap of settled bases with the bases of the previous update.

    Attributes:
        weights: weights that are factored now or later, in the order of the model.
        left_whole: reasons why other weights stay whole, by name.
        updates: number of updates so far.

    Raises:
        ConfigurationError: an option is outside of its range, or the model has no weight to factorise.
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
        self.delay = check_whole("delay", delay, least=0)
        self.stability_frequency = check_whole("stability_frequency", stability_frequency)
        self.min_rank = check_whole("min_rank", min_rank)
        self.sigma_cutoff_fraction = check_share("sigma_cutoff_fraction", sigma_cutoff_fraction)
        self.network_layer_perc_step = check_share("network_layer_perc_step", network_layer_perc_step)
        if self.network_layer_perc_step == 0:
            raise ConfigurationError("network_layer_perc_step must be above 0, or no weight would be factored")
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
            raise ConfigurationError(
                f"there is no weight to factorise in this model ({reasons or 'it has no layer of a supported kind'})"
            )
        self._watches = {weight.name: BasisWatch(threshold) for weight in self.weights}
        self._steps = self.updates = 0
        self._replaced = False
        self._model.register_load_state_dict_pre_hook(self._before_loading)
        self._model.register_load_state_dict_post_hook(self._after_loading)

    @torch.no_grad()
    def step(self) -> bool:
        """Count a training step, and update the weights if an update is due; call it after the optimizer's ``step``.

        Returns:
            Whether parameters of the model were replaced. Other code that stores parameters, such as an average of the
            weights, must fetch them again.

        Raises:
            ConfigurationError: in the first step, if the state of the optimizer cannot be transformed.
        """
        if self._optimizer is None:
            raise ConfigurationError("training needs the optimizer; pass it to OIALR")
        if self._steps == 0:
            check_moments(self._optimizer, [weight.trained for weight in self.weights])
        self._steps += 1
        since = self._steps - self.delay
        if since >= 0 and since % self.stability_frequency == 0:
            self._update()
        return self._announce_replacements()

    @property
    def size(self) -> Size:
        """Count the trainable and all parameters of the model, and all parameters with whole weights."""
        parameters = list(self._model.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        saved = sum(weight.rows * weight.columns - weight.size for weight in self.weights)
        return Size(sum(p.numel() for p in parameters if p.requires_grad), total, total + saved)

    @property
    def ranks(self) -> dict[str, int]:
        """Return the ranks of all weights by name; the rank of a whole weight is its smaller side."""
        return {weight.name: weight.rank for weight in self.weights}

    @property
    def overlaps(self) -> dict[str, float | None]:
        """Return the overlaps of the bases with the bases of the previous update, by name; None before two updates."""
        return {name: watch.overlap for name, watch in self._watches.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of steps and updates, the ranks and the bases; the model's own state has the factors."""
        return {
            "steps": self._steps,
            "updates": self.updates,
            "ranks": {weight.name: weight.rank if weight.is_factored else None for weight in self.weights},
            "watches": {name: watch.state_dict() for name, watch in self._watches.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`, and give the weights the saved ranks.

        The states of model and optimizer can be loaded before or after this.

        Raises:
            ConfigurationError: the state belongs to another model; nothing was changed.
        """
        own, saved = set(self._watches), set(state["ranks"])
        if own != saved:
            raise ConfigurationError(
                f"the saved state has other weights than this model: {', '.join(sorted(own ^ saved))} on one side only"
            )
        self._steps, self.updates = state["steps"], state["updates"]
        for weight in self.weights:
            self._watches[weight.name].load_state_dict(state["watches"][weight.name])
            # Keeps values that were loaded before, since they have this shape.
            self._reshape(weight, state["ranks"][weight.name])
        self._announce_replacements()

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
                self._factorise_if_settled(weight)

    def _factorise_if_settled(self, weight: Weight) -> None:
        watch, factors = self._watches[weight.name], self._decompose(weight.trained.flatten(1))
        U, _, V = factors
        watch.compare(U.to(weight.trained), V.to(weight.trained))
        if watch.settled:
            watch.release_bases()
            self._factorise(weight, *factors)
            self._refresh(weight)

    def _factorise(self, weight: Weight, U: Tensor, s: Tensor, V: Tensor) -> None:
        before = weight.trained
        self._rotate_state(before, weight.factorise(U, torch.diag(s), V), U, V)

    def _refresh(self, weight: Weight) -> None:
        """Multiply Sigma's own bases into U and V, and cut small singular values."""
        before, (U, V) = weight.trained, weight.bases
        P, s, Q = self._decompose(before)
        # The overlap of U V^T with (U P)(V Q)^T, in factored form.
        self._watches[weight.name].record_overlap(float((P * Q).sum()) / len(s))
        rank = kept_rank(s, self.sigma_cutoff_fraction, self.min_rank)
        P, s, Q = P[:, :rank], s[:rank], Q[:, :rank]
        # Double precision keeps the bases orthonormal over any number of updates.
        U_new, V_new = U.double() @ P, V.double() @ Q
        if rank < len(before):
            after = weight.factorise(U_new, torch.diag(s), V_new)
        else:
            after = before
            for factor, value in ((U, U_new), (before, torch.diag(s)), (V, V_new)):
                factor.copy_(value)
        self._rotate_state(before, after, P, Q)

    def _decompose(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, s, V = from_first_rank(self._ddp, *decompose(matrix))
        return U, s, V

    def _rotate_state(self, before: nn.Parameter, after: nn.Parameter, left: Tensor, right: Tensor) -> None:
        after.grad = None  # this gradient belongs to the old bases
        self._replaced |= after is not before
        if self._optimizer is not None:
            rotate_moments(self._optimizer, before, after, left, right)

    # -- shapes ----------------------------------------------------------------------------

    def _before_loading(self, _module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        for weight in self.weights:
            holder, dot, attribute = weight.name.rpartition(".")
            place = f"{prefix}{holder}{dot}"
            sigma = state.get(f"{place}parametrizations.{attribute}.original1")
            if sigma is not None:
                self._reshape(weight, len(sigma))
            elif f"{place}{attribute}" in state:
                self._reshape(weight, None)

    def _after_loading(self, *_: Any) -> None:
        self._announce_replacements()

    def _reshape(self, weight: Weight, rank: int | None) -> None:
        before = weight.trained
        after = weight.reshape(rank)
        if after is not before:
            self._replaced = True
            if self._optimizer is not None:
                replace_parameter(self._optimizer, before, after)

    def _announce_replacements(self) -> bool:
        """Register replaced parameters with the data-parallel wrapper; return whether any were replaced."""
        replaced, self._replaced = self._replaced, False
        if replaced and self._ddp is not None:
            rewrap(self._ddp)
        return replaced
