"""Accumulate gradients over micro-batches in random projections, without buffers of their full size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isqrt
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..common.checks import check_whole
from ..common.errors import ConfigurationError
from ..nn.layer import BlackBoxLinear
from .fused import StepsParameters, parameters_of
from .memory import state_bytes
from .projection import Projection, check_projection

__all__ = ["GradCompressor"]


class GradCompressor:
    """Accumulate compressed gradients: algorithm 1 of Flora (arXiv 2402.03293).

        C <- C + down(grad)                     for each micro-batch, after which the gradient is freed
        grad <- up(C)                           at the end; the next accumulation has another projection

    The result is an unbiased estimate of the sum of the gradients. Its relative variance is (d + 1) / rank with
    Gaussian projections, where d is the smaller side. This also holds for gradients that are estimates themselves:
    zero-order gradients of a device's controls are averaged over micro-batches in r / d of the memory.

    A tensor of more than two axes counts as a matrix, with its first axis as rows and all others as columns. The
    controls of a device layer are folded into a nearly square matrix. Other vectors, and gradients that would not
    become smaller, accumulate in ``.grad`` as usual.

        compressor = GradCompressor(model, rank=8)
        for part in parts:
            (loss(model, part) / len(parts)).backward()
        compressor.release()
        optimizer.step()
        optimizer.zero_grad()

    Args:
        parameters: tensors, or a module, of which present and future parameters and controls of device layers are used.
        rank: rank r of the projections.
        projection: one of `astralora.optim.projection.PROJECTIONS`.
        seed: seed of the projections.
        during_backward: accumulate each gradient as soon as it is computed, so that only one exists at a time. Without
            it, gradients stay until `absorb` is called, so that other code, such as `DistributedDataParallel`, can use
            them first.

    Attributes:
        paused: whether gradients are left in ``.grad``.

    Raises:
        ConfigurationError: the rank or the projection is not valid.
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
        self._indices: dict[Tensor, int] = {}
        self._foldable: set[Tensor] = set()
        self._hooks: dict[Tensor, RemovableHandle] = {}
        self._sums: dict[int, Tensor] = {}
        self._cycle = 0
        self.watch(parameters)

    def watch(self, parameters: nn.Module | Iterable[Tensor]) -> None:
        """Accumulate the gradients of these parameters as well; repeated parameters are ignored."""
        if isinstance(parameters, nn.Module):
            self._modules.append(parameters)
        else:
            for tensor in parameters:
                self._indices.setdefault(tensor, len(self._indices))
        self._register_parameters()

    @property
    def pending(self) -> bool:
        """Report whether gradients were accumulated since the last `release`."""
        return bool(self._sums)

    def absorb(self) -> None:
        """Add the gradients in ``.grad`` to the accumulators, and free them."""
        self._register_parameters()
        if not self.paused:
            for parameter in self._indices:
                self._accumulate(parameter)

    def release(
        self,
        optimizer: StepsParameters | None = None,
        *,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Write the accumulated gradients into ``.grad``, and start a new accumulation in another subspace.

        Args:
            optimizer: optimizer that steps each parameter as soon as its gradient is decompressed. The gradient is then
                freed, so that only one exists at a time. Without it, all gradients are decompressed, and any optimizer
                can step them.
            reduce: function applied to every accumulator before it is decompressed, such as an average over processes.
        """
        trained = set() if optimizer is None else parameters_of(optimizer)
        for parameter, index in self._indices.items():
            total = self._sums.pop(index, None)
            if total is not None:
                rest = parameter.grad
                parameter.grad = self._decompress(parameter, index, total if reduce is None else reduce(total))
                if rest is not None:
                    parameter.grad += rest
            if optimizer is not None and parameter in trained:
                optimizer.step_parameter(parameter)
                parameter.grad = None
        self._cycle += 1
        self._register_parameters()

    def remove(self) -> None:
        """Remove the hooks, so that gradients stay in ``.grad``; `absorb` and `release` still work."""
        self.during_backward = False
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def state_bytes(self) -> int:
        """Count the bytes of the accumulators."""
        return state_bytes(self._sums)

    def state_dict(self) -> dict[str, Any]:
        """Return the accumulators, the number of the accumulation and the options, also during an accumulation."""
        return {
            "rank": self.rank,
            "projection": self.projection,
            "seed": self.seed,
            "cycle": self._cycle,
            "sums": {place: total.clone() for place, total in self._sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`.

        Raises:
            ConfigurationError: the state has another rank, projection or seed; nothing was changed.
        """
        for name in ("rank", "projection", "seed"):
            if state[name] != getattr(self, name):
                raise ConfigurationError(
                    f"the accumulated gradients were compressed with {name}={state[name]!r}, and cannot continue with "
                    f"{name}={getattr(self, name)!r}"
                )
        self._cycle = state["cycle"]
        self._sums = {place: total.clone() for place, total in state["sums"].items()}

    # -- parameters -------------------------------------------------------------------------

    def _register_parameters(self) -> None:
        """Find parameters that were added or unfrozen since the last call, and hook them."""
        for root in self._modules:
            for parameter in root.parameters():
                self._indices.setdefault(parameter, len(self._indices))
            for module in root.modules():
                if isinstance(module, BlackBoxLinear):
                    self._foldable.add(module.controls)
        if self.during_backward:
            for tensor in self._indices:
                if tensor.requires_grad and tensor.is_leaf and tensor not in self._hooks:
                    self._hooks[tensor] = tensor.register_post_accumulate_grad_hook(self._on_gradient)

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self.paused:
            self._accumulate(parameter)

    @torch.no_grad()
    def _accumulate(self, parameter: Tensor) -> None:
        grad = parameter.grad
        if grad is None or not self._saves_memory(parameter, grad):
            return
        index = self._indices[parameter]
        rows, columns = self._matrix_shape(parameter)
        padded = nn.functional.pad(grad.flatten().to(_precision(grad)), (0, rows * columns - grad.numel()))
        part = self._projection(parameter, index).down(padded.view(rows, columns))
        before = self._sums.get(index)
        # A loaded sum may be on another torch device.
        self._sums[index] = part if before is None else part.add_(before.to(part))
        parameter.grad = None

    def _matrix_shape(self, parameter: Tensor) -> tuple[int, int]:
        """Return the shape of a parameter as a matrix; vectors that are not folded have a single row."""
        if parameter.ndim >= 2:
            return parameter.shape[0], parameter.numel() // max(parameter.shape[0], 1)
        if parameter in self._foldable:
            rows = isqrt(parameter.numel())
            return rows, -(-parameter.numel() // max(rows, 1))
        return 1, parameter.numel()

    def _saves_memory(self, parameter: Tensor, grad: Tensor) -> bool:
        if grad.layout != torch.strided or not grad.is_floating_point():
            return False
        rows, columns = self._matrix_shape(parameter)
        compressed = self.rank * max(rows, columns) * _precision(grad).itemsize
        return self.rank <= min(rows, columns) and compressed < grad.numel() * grad.element_size()

    def _projection(self, parameter: Tensor, index: int) -> Projection:
        like = torch.empty((), dtype=_precision(parameter), device=parameter.device)
        shape, purpose = self._matrix_shape(parameter), ("gradients", index, self._cycle)
        return Projection.draw(self.projection, self.rank, shape, self.seed, *purpose, like=like)

    def _decompress(self, parameter: Tensor, index: int, total: Tensor) -> Tensor:
        projection = self._projection(parameter, index)
        matrix = projection.up(total.to(projection.matrix))
        return matrix.flatten()[: parameter.numel()].view(parameter.shape).to(parameter.dtype)


def _precision(tensor: Tensor) -> torch.dtype:
    """Return the dtype of the accumulators: float32 for half precision, else the dtype of the tensor."""
    return torch.promote_types(tensor.dtype, torch.float32)
