"""Flora: Adafactor with a momentum that is kept in random subspaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, optim

from ..common.errors import ConfigurationError
from .adafactor import clip, precondition, step_size
from .memory import state_bytes
from .moment import advance, compressed_shape, is_compressed
from .options import check_options, warn_of_divergence
from .projection import Projection
from .quantization import Storage, choose_storage
from .rotation import rotate_state

__all__ = ["Flora"]

State = dict[str, Any]


class Flora(optim.Optimizer):
    """An optimizer whose state is a fraction of Adam's: random projections of the momentum, made anew from a seed.

    Hao, Cao and Mou, "Flora: Low-Rank Adapters Are Secretly Gradient Compressors", ICML 2024, arXiv 2402.03293,
    algorithm 2, on the update of Adafactor (Shazeer and Stern, arXiv 1804.04235). For a weight of n x m it keeps
    r max(n, m) numbers of momentum and n + m of second moments. The momentum is compressed for matrices with
    min(n, m) >= rank and max(n, m) <= 4 min(n, m), and dense for all else. Weights and gradients in half precision are
    updated in float32.

    The update is scaled by the learning rate after it has been averaged, so that a schedule acts at once.

    Args:
        params: tensors, or groups with options of their own, as in every torch optimizer.
        lr: learning rate; None with ``relative_step``.
        rank: r of the momentum; None keeps it dense.
        kappa: steps in one subspace. Many steps average well there, few reach every direction soon.
        eps: added to squared gradients; and the least RMS that a parameter is taken to have by ``scale_parameter``.
        clip_threshold: largest RMS of an update, before the learning rate.
        decay_rate: c in 1 - t^c, the decay of second moments in step t.
        beta1: decay of the momentum; None or 0 for none, which leaves nothing for ``rank`` to compress.
        weight_decay: of the parameter itself, times the step size (decoupled).
        scale_parameter: step sizes are in units of the parameter's RMS.
        relative_step: step sizes fall with the step, min(1e-2, 1 / sqrt(t)).
        warmup_init: the relative step begins at 1e-6 t.
        factorize_second_moment: keep means of rows and columns in place of every entry.
        seed: of the projections.
        quantization: keep the state in 8 bits: True, or ``"bitsandbytes"`` for that library's codes.
        projection: ``"gaussian"`` as published, or ``"orthonormal"``, of less variance at the price of a QR
            decomposition each time.

    Raises:
        ConfigurationError: for arguments that cannot work, one by one or together.

    Warns:
        DivergingMomentumWarning: subspaces move so often that the momentum grows without end.
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
        self._places: dict[Tensor, int] = {}
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
        """Add parameters, with options of their own if they have any.

        Raises:
            ConfigurationError: the options cannot work; nothing was added.
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
            closure: computes the loss, and the gradients, first.

        Returns:
            What the closure returned.
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
        """Update one parameter alone, by its gradient.

        Raises:
            ConfigurationError: it is none of this optimizer's.
        """
        self._locate(parameter)
        if parameter.grad is not None:
            self._update(parameter, self._groups[parameter])

    @torch.no_grad()
    def rotate_moments(self, old: Tensor, new: Tensor, left: Tensor, right: Tensor) -> None:
        """Turn what is remembered of a parameter, whose gradient is G, into that of another, whose gradient is U^T G V.

        The momentum is decompressed, turned as U^T m V, and kept as suits the new shape: compressed again, or dense
        where the new matrix is smaller than the rank. A dense one turns exactly. A compressed one goes to a subspace
        that has nothing to do with the old: it comes back as U^T m V without bias, with as much noise as from one of
        the moves every ``kappa`` steps. Second moments, whole or of rows and columns, turn as Adam's do, see
        `astralora.lowrank.moments.rotate_second_moment`. Codes of 8 bits are decoded before, and coded anew after.

        Args:
            old: whose state it is; counts as a matrix of its first axis by all others, (m, n).
            new: a matrix, (r, r), that has taken the place of the old in its group; may be the same.
            left: U, (m, r), with orthonormal columns.
            right: V, (n, r), with orthonormal columns.

        Raises:
            ConfigurationError: the new one is in none of the groups.
        """
        self._forget_places()
        self._locate(new)
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
        """Bytes of everything that is kept between steps; see `astralora.optim.state_bytes`."""
        return state_bytes(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned, bit for bit: the next step is the one that would have followed.

        Unlike torch's own, it leaves the types of what is loaded as they are: codes stay integers, and what belongs to
        weights in half precision stays in float32.
        """
        loaded: list[Mapping[str, Any]] = []
        # Last in the row of hooks, so that it sees what those of the user have made of the state.
        watch = self.register_load_state_dict_pre_hook(lambda _, state: loaded.append(state))
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            watch.remove()
        given = loaded[-1]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in given["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in given["state"]:
                self.state[parameter] = _on_device_of(parameter, given["state"][number])
        self._forget_places()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_places()

    def _forget_places(self) -> None:
        self._places, self._groups = {}, {}

    def _locate(self, parameter: Tensor) -> int:
        """The parameter's place among all of this optimizer's, which tells its projections from the others'."""
        if parameter not in self._places:
            self._places, self._groups = {}, {}
            for group in self.param_groups:
                for known in group["params"]:
                    self._places[known] = len(self._places)
                    self._groups[known] = group
        if parameter not in self._places:
            raise ConfigurationError(
                f"a parameter of shape {tuple(parameter.shape)} is none of this optimizer's; add it with "
                f"add_param_group first"
            )
        return self._places[parameter]

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        grad = parameter.grad
        assert grad is not None
        if grad.layout != torch.strided or grad.is_complex():
            raise ConfigurationError(
                f"Flora takes dense real gradients, and that of a parameter of shape {tuple(parameter.shape)} is "
                f"{grad.layout}, {grad.dtype}"
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
        """The update averaged with those before it: exactly, or by way of a subspace."""
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
        averaged, after = advance(before, update, beta1, here, there)
        storage.put(state, "moment", after, signed=True)
        return averaged

    def _projection(
        self, parameter: Tensor, shape: torch.Size, group: dict[str, Any], number: int, *, like: Tensor
    ) -> Projection:
        """The subspace of this number, for matrices that a parameter's momentum has the shape of."""
        n, m = shape
        purpose = ("momentum", self._locate(parameter), number)
        return Projection.draw(group["projection"], group["rank"], (n, m), group["seed"], *purpose, like=like)


def _on_device_of(parameter: Tensor, state: Mapping[str, Any]) -> State:
    """A copy of loaded state: what is loaded twice must not be one and the same."""
    return {
        name: (value.clone() if name == "step" else value.to(parameter.device, copy=True))
        if isinstance(value, Tensor)
        else value
        for name, value in state.items()
    }
