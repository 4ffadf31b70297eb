"""Keeping the processes of data-parallel training together while a model changes its shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..common.errors import ConfigurationError

__all__ = ["from_first_rank", "rewrap", "unwrap"]


def unwrap(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The model, and what averages its gradients over processes, if anything does.

    Raises:
        ConfigurationError: it keeps copies of the parameters in another precision, which cannot follow.
    """
    if not isinstance(model, DistributedDataParallel):
        return model, None
    if model.mixed_precision is not None:
        raise ConfigurationError(
            "DistributedDataParallel with mixed_precision keeps copies of parameters that are going to be replaced; "
            "use torch.autocast in its place"
        )
    return model.module, model


def from_first_rank(ddp: DistributedDataParallel | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What the first of the processes has found: singular vectors have signs that every machine chooses for itself."""
    if ddp is None:
        return tensors
    group = ddp.process_group
    copies = tuple(tensor.contiguous() for tensor in tensors)
    for copy in copies:
        torch.distributed.broadcast(copy, group_src=0, group=group)
    return copies


def rewrap(ddp: DistributedDataParallel) -> None:
    """Let data-parallel training get to know the parameters of a model that has changed, with the options it has.

    It learns of parameters when it is made, and at no other time; so it is made anew, as the same object.
    """
    comm_hooks: list[tuple[Any, Any]] = list(ddp._comm_hooks)
    module = ddp.module
    options = {
        "device_ids": ddp.device_ids,
        "output_device": ddp.output_device,
        "dim": ddp.dim,
        "forward_sync_buffers": ddp.forward_sync_buffers,
        "process_group": ddp.process_group,
        "find_unused_parameters": ddp.find_unused_parameters,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "static_graph": ddp.static_graph,
        "bucket_cap_mb": ddp.bucket_bytes_cap / 2**20,
    }
    # What users have hung onto it as onto any module.
    kept = {name: vars(ddp)[name] for name in vars(nn.Module()) if "hook" in name or name == "training"}
    # With the old reducer go its hooks on the parameters that stay.
    del ddp.reducer, ddp.logger
    ddp.__init__(module, **options)  # type: ignore[misc]
    vars(ddp).update(kept)
    for hook, state in comm_hooks:
        ddp.register_comm_hook(state, hook)
