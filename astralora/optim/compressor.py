"""Accumulating gradients over micro-batches in random projections, without a buffer of their full size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isqrt
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..common.errors import ConfigurationError
from ..nn.layer import BlackBoxLinear
from .fused import StepsParameters, parameters_of
from .memory import state_bytes
from .options import check_whole
from .projection import Projection, check_projection

__all__ = ["GradCompressor"]


class GradCompressor:
    """Compressed accumulation of gradients: algorithm 1 of Flora (arXiv 2402.03293).

        C <- C + down(grad)                     for each micro-batch, after which the gradient is freed
        grad <- up(C)                           at the end; the next accumulation has another projection

    What comes back is the sum of the gradients, without bias; of relative variance (d + 1) / rank with Gaussian
    projections, d the smaller side. That goes for gradients which are estimates themselves, too: zero-order gradients
    of a device's controls average over micro-batches in r / d of the space.

    Tensors of more than two axes count as matrices of their first axis by all others. The controls of a device layer
    are folded into a matrix that is nearly square. Other vectors, and all that would not become smaller, accumulate in
    ``.grad`` as ever.

        compressor = GradCompressor(model, rank=8)
        for part in parts:
            (loss(model, part) / len(parts)).backward()
        compressor.release()
        optimizer.step()
        optimizer.zero_grad()

    Args:
        parameters: a module, whose parameters of any time are meant and whose device layers are known; or tensors.
        rank: r of the projections.
        projection: one of `astralora.optim.projection.PROJECTIONS`.
        seed: of the projections.
        during_backward: take each gradient as soon as it is there, so that one is alive at a time. Without it nothing
            happens before `absorb` is called: for gradients that others want to see first, such as
            `DistributedDataParallel`.

    Attributes:
        paused: while set, gradients are left alone.

    Raises:
        ConfigurationError: no such rank or projection.
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor] = (),
        *,
        rank: int,
        projection: str = "gaussian",
        seed: int = 0,
        during_backward: bool = True,
    ) -> None:
        check_whole("rank", rank)
        check_projection(projection)
        self.rank = rank
        self.projection = projection
        self.seed = seed
        self.paused = False
        self.during_backward = during_backward
        self._modules: list[nn.Module] = []
        self._places: dict[Tensor, int] = {}
        self._foldable: set[Tensor] = set()
        self._hooks: dict[Tensor, RemovableHandle] = {}
        self._sums: dict[int, Tensor] = {}
        self._cycle = 0
        self.watch(parameters)

    def watch(self, parameters: nn.Module | Iterable[Tensor]) -> None:
        """Take in the gradients of these parameters as well; of those that are known already nothing changes."""
        if isinstance(parameters, nn.Module):
            self._modules.append(parameters)
        else:
            for tensor in parameters:
                self._places.setdefault(tensor, len(self._places))
        self._look_around()

    @property
    def pending(self) -> bool:
        """Whether anything has been accumulated since the last `release`."""
        return bool(self._sums)

    def absorb(self) -> None:
        """Add to the accumulators, and free, what there is in ``.grad``."""
        self._look_around()
        if not self.paused:
            for parameter in self._places:
                self._take(parameter)

    def release(
        self,
        optimizer: StepsParameters | None = None,
        *,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Put what was accumulated back into ``.grad``, and begin anew in another subspace.

        Args:
            optimizer: steps each parameter as soon as its gradient is there, after which the gradient is freed: one is
                alive at a time. Without it they all are, and any optimizer's ``step`` may follow.
            reduce: done to every accumulator before, such as averaging over processes.
        """
        trained = set() if optimizer is None else parameters_of(optimizer)
        for parameter, place in self._places.items():
            total = self._sums.pop(place, None)
            if total is not None:
                rest = parameter.grad
                parameter.grad = self._expand(parameter, place, total if reduce is None else reduce(total))
                if rest is not None:
                    parameter.grad += rest
            if optimizer is not None and parameter in trained:
                optimizer.step_parameter(parameter)
                parameter.grad = None
        self._cycle += 1
        self._look_around()

    def remove(self) -> None:
        """Leave gradients in ``.grad`` again, unless `absorb` is called; what was accumulated can still be released."""
        self.during_backward = False
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def state_bytes(self) -> int:
        """Bytes of the accumulators."""
        return state_bytes(self._sums)

    def state_dict(self) -> dict[str, Any]:
        """What the accumulation goes on from, half-way or not."""
        return {
            "rank": self.rank,
            "projection": self.projection,
            "seed": self.seed,
            "cycle": self._cycle,
            "sums": {place: total.clone() for place, total in self._sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ConfigurationError: it is of another rank, projection or seed; nothing was changed.
        """
        for name in ("rank", "projection", "seed"):
            if state[name] != getattr(self, name):
                raise ConfigurationError(
                    f"the accumulated gradients were compressed with {name}={state[name]!r}, and cannot go on with "
                    f"{name}={getattr(self, name)!r}"
                )
        self._cycle = state["cycle"]
        self._sums = {place: total.clone() for place, total in state["sums"].items()}

    # -- parameters -------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Find parameters that have come, or have begun to be trained, since the last time."""
        for root in self._modules:
            for parameter in root.parameters():
                self._places.setdefault(parameter, len(self._places))
            for module in root.modules():
                if isinstance(module, BlackBoxLinear):
                    self._foldable.add(module.controls)
        if self.during_backward:
            for tensor in self._places:
                if tensor.requires_grad and tensor.is_leaf and tensor not in self._hooks:
                    self._hooks[tensor] = tensor.register_post_accumulate_grad_hook(self._on_gradient)

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self.paused:
            self._take(parameter)

    @torch.no_grad()
    def _take(self, parameter: Tensor) -> None:
        grad = parameter.grad
        if grad is None or not self._pays(parameter, grad):
            return
        place = self._places[parameter]
        rows, columns = self._shape(parameter)
        padded = nn.functional.pad(grad.flatten().to(_precision(grad)), (0, rows * columns - grad.numel()))
        part = self._project(parameter, place).down(padded.view(rows, columns))
        before = self._sums.get(place)
        # What was loaded may be on another device.
        self._sums[place] = part if before is None else part.add_(before.to(part))
        parameter.grad = None

    def _shape(self, parameter: Tensor) -> tuple[int, int]:
        """The matrix that a parameter counts as; of fewer than two rows where it counts as none."""
        if parameter.ndim >= 2:
            return parameter.shape[0], parameter.numel() // max(parameter.shape[0], 1)
        if parameter in self._foldable:
            rows = isqrt(parameter.numel())
            return rows, -(-parameter.numel() // max(rows, 1))
        return 1, parameter.numel()

    def _pays(self, parameter: Tensor, grad: Tensor) -> bool:
        if grad.layout != torch.strided or not grad.is_floating_point():
            return False
        rows, columns = self._shape(parameter)
        compressed = self.rank * max(rows, columns) * _precision(grad).itemsize
        return self.rank <= min(rows, columns) and compressed < grad.numel() * grad.element_size()

    def _project(self, parameter: Tensor, place: int) -> Projection:
        like = torch.empty((), dtype=_precision(parameter), device=parameter.device)
        return Projection.draw(
            self.projection, self.rank, self._shape(parameter), self.seed, "gradients", place, self._cycle, like=like
        )

    def _expand(self, parameter: Tensor, place: int, total: Tensor) -> Tensor:
        projection = self._project(parameter, place)
        matrix = projection.up(total.to(projection.matrix))
        return matrix.flatten()[: parameter.numel()].view(parameter.shape).to(parameter.dtype)


def _precision(tensor: Tensor) -> torch.dtype:
    """Half precision accumulates in float32."""
    return torch.promote_types(tensor.dtype, torch.float32)
