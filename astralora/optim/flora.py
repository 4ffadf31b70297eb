"""Optimize with Flora: Adafactor with a momentum that is kept in random subspaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, optim

from ..common.errors import ConfigurationError
from .adafactor import clip, precondition, step_size
from .memory import state_bytes
from .momentum import compressed_shape, is_compressed, step_momentum
from .options import check_options, warn_of_divergence
from .projection import Projection
from .quantization import Storage, choose_storage
from .rotation import rotate_state

__all__ = ["Flora"]

State = dict[str, Any]


class Flora(optim.Optimizer):
    """Optimize with a fraction of Adam's state, by random projections of the momentum that are drawn from a seed.

    Hao, Cao and Mou, "Flora: Low-Rank Adapters Are Secretly Gradient Compressors", ICML 2024, arXiv 2402.03293,
    algorithm 2, with the update of Adafactor (Shazeer and Stern, arXiv 1804.04235). For a weight of n x m, the state
    has r max(n, m) numbers of momentum and n + m of second moments. The momentum is compressed for matrices with
    min(n, m) >= rank and max(n, m) <= 4 min(n, m), and dense for all other tensors. Weights and gradients in half
    precision are updated in float32.

    The learning rate is applied after the momentum, so that a schedule takes effect at once.

    Args:
        params: tensors, or groups with options of their own, as in every torch optimizer.
        lr: learning rate; None with ``relative_step``.
        rank: rank r of the momentum; None keeps it dense.
        kappa: number of steps before the subspace changes. Many steps improve the average; few steps cover all
            directions sooner.
        eps: number added to squared gradients, and smallest RMS of a parameter for ``scale_parameter``.
        clip_threshold: largest RMS of an update, before the learning rate.
        decay_rate: c in 1 - t^c, the decay of second moments in step t.
        beta1: decay of the momentum; without momentum (None or 0), ``rank`` has no effect.
        weight_decay: decay of the parameter itself, multiplied by the step size (decoupled).
        scale_parameter: measure step sizes in units of the parameter's RMS.
        relative_step: decrease step sizes with the number of the step t, min(1e-2, 1 / sqrt(t)).
        warmup_init: start the relative step at 1e-6 t.
        factorize_second_moment: store means of rows and columns in place of all entries.
        seed: seed of the projections.
        quantization: store the state in 8 bits: True, or ``"bitsandbytes"`` for the codes of that library.
        projection: ``"gaussian"`` as published, or ``"orthonormal"``, which has less variance but needs a QR
            decomposition for each projection.

    Raises:
        ConfigurationError: an argument is outside of its range, or arguments exclude each other.

    Warns:
        DivergingMomentumWarning: the subspace moves so often that the momentum grows without bound.
    """

    def __init__(
        self,
        params: optim.optimizer.ParamsT,
        lr: float | Tensor | None = None,
        rank: int | None = None,
        kappa: int = 1000,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = False,
        warmup_init: bool = False,
        factorize_second_moment: bool = True,
        seed: int = 0,
        quantization: bool | str = False,
        *,
        projection: str = "gaussian",
    ) -> None:
        self._indices: dict[Tensor, int] = {}
        self._groups: dict[Tensor, dict[str, Any]] = {}
        defaults = {
            "lr": lr,
            "rank": rank,
            "kappa": kappa,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
            "factorize_second_moment": factorize_second_moment,
            "seed": seed,
            "quantization": quantization,
            "projection": projection,
        }
        check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with its own options if it has any.

        Raises:
            ConfigurationError: the options cannot work; no group was added.
        """
        check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        warn_of_divergence(param_group["params"], param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: function that computes the loss and the gradients first.

        Returns:
            The result of the closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor) -> None:
        """Update one parameter alone, if it has a gradient.

        Raises:
            ConfigurationError: the parameter is in no group of this optimizer.
        """
        self._index_of(parameter)
        if parameter.grad is not None:
            self._update(parameter, self._groups[parameter])

    @torch.no_grad()
    def rotate_moments(self, old: Tensor, new: Tensor, left: Tensor, right: Tensor) -> None:
        """Transform the state of a parameter with gradient G into the state of another with gradient U^T G V.

        The momentum is decompressed, transformed to U^T m V, and compressed again; it stays dense if the new matrix is
        smaller than the rank. A dense momentum transforms exactly. A compressed one moves to an independent subspace:
        it is an unbiased estimate of U^T m V, with the noise that a move after ``kappa`` steps adds. Second moments,
        whole or by rows and columns, transform like those of Adam; see
        `astralora.lowrank.moments.rotate_second_moment`. Codes of 8 bits are decoded before and encoded again after.

        Args:
            old: parameter with the state, a matrix with its first axis as rows and all others as columns, (m, n).
            new: matrix that has replaced the old parameter in its group, (r, r); may be the same.
            left: U, (m, r), with orthonormal columns.
            right: V, (n, r), with orthonormal columns.

        Raises:
            ConfigurationError: the new parameter is in no group of this optimizer.
        """
        self._clear_indices()
        self._index_of(new)
        group = self._groups[new]
        state = self.state.pop(old, None)
        if state:
            self.state[new] = rotate_state(
                state,
                choose_storage(group["quantization"]),
                group,
                (old.shape, new.shape),
                (left, right),
                lambda shape, number, like: self._projection(new, shape, group, number, like=like),
            )

    def state_bytes(self) -> int:
        """Count the bytes of the state between steps; see `astralora.optim.state_bytes`."""
        return state_bytes(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`, bit for bit, so that training continues exactly.

        Unlike torch's own method, it keeps the dtypes of the loaded state: codes stay integers, and the state of
        weights in half precision stays float32.
        """
        seen_by_hook: list[Mapping[str, Any]] = []
        # This hook comes last, so that it gets the state as the user's hooks have changed it.
        hook = self.register_load_state_dict_pre_hook(lambda _, state: seen_by_hook.append(state))
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            hook.remove()
        loaded = seen_by_hook[-1]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in loaded["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in loaded["state"]:
                self.state[parameter] = _copy_to_device(loaded["state"][number], parameter.device)
        self._clear_indices()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._clear_indices()

    def _clear_indices(self) -> None:
        self._indices, self._groups = {}, {}

    def _index_of(self, parameter: Tensor) -> int:
        """Return the index of a parameter in this optimizer, which selects its projections."""
        if parameter not in self._indices:
            self._clear_indices()
            for group in self.param_groups:
                for each in group["params"]:
                    self._indices[each] = len(self._indices)
                    self._groups[each] = group
        if parameter not in self._indices:
            raise ConfigurationError(
                f"a parameter of shape {tuple(parameter.shape)} is in no group of this optimizer; add it with "
                f"add_param_group first"
            )
        return self._indices[parameter]

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        grad = parameter.grad
        assert grad is not None
        if grad.layout != torch.strided or grad.is_complex():
            raise ConfigurationError(
                f"Flora takes dense real gradients, and the gradient of a parameter of shape {tuple(parameter.shape)} "
                f"is {grad.layout}, {grad.dtype}"
            )
        precision = torch.promote_types(parameter.dtype, torch.float32)
        grad, values = grad.to(precision), parameter.to(precision)
        state, storage = self.state[parameter], choose_storage(group["quantization"])
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        step = int(state["step"])
        update = precondition(
            grad,
            state,
            storage,
            beta2=1 - step ** group["decay_rate"],
            eps=group["eps"][0],
            factorize=group["factorize_second_moment"],
        )
        update = clip(update, group["clip_threshold"])
        if group["beta1"]:
            update = self._average(parameter, update, state, storage, group, step)
        size = step_size(group, step, values)
        if group["weight_decay"]:
            values = values - values * (size * group["weight_decay"])
        parameter.copy_(values - size * update)

    def _average(
        self,
        parameter: Tensor,
        update: Tensor,
        state: State,
        storage: Storage,
        group: dict[str, Any],
        step: int,
    ) -> Tensor:
        """Return the moving average of the updates: exact, or in a subspace."""
        beta1 = group["beta1"]
        before = storage.get(state, "moment", signed=True)
        if not is_compressed(update.shape, group):
            averaged = update * (1 - beta1) if before is None else update.lerp(before, beta1)
            storage.put(state, "moment", averaged, signed=True)
            return averaged
        if before is None:
            before = update.new_zeros(compressed_shape(group["rank"], update.shape))
        current = state.setdefault("subspace", 0)
        here, there = self._projection(parameter, update.shape, group, current, like=update), None
        if step % group["kappa"] == 0:
            state["subspace"] = current + 1
            there = self._projection(parameter, update.shape, group, current + 1, like=update)
        averaged, after = step_momentum(before, update, beta1, here, there)
        storage.put(state, "moment", after, signed=True)
        return averaged

    def _projection(
        self, parameter: Tensor, shape: torch.Size, group: dict[str, Any], number: int, *, like: Tensor
    ) -> Projection:
        """Draw the subspace with this number for the momentum of a parameter with this shape."""
        n, m = shape
        purpose = ("momentum", self._index_of(parameter), number)
        return Projection.draw(group["projection"], group["rank"], (n, m), group["seed"], *purpose, like=like)


def _copy_to_device(state: Mapping[str, Any], device: torch.device) -> State:
    """Copy the state of a parameter to a torch device; never share it, since two optimizers may load the same state."""
    return {
        name: (value.clone() if name == "step" else value.to(device, copy=True)) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
