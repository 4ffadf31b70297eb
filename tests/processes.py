"""Two processes that work as one group, for tests of data-parallel training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["in_two_processes"]


def in_two_processes(body: Callable[..., dict[str, Any]], folder: Path, *args: Any) -> list[dict[str, Any]]:
    """Call ``body(number, *args)`` in two processes of a group, each with one thread: what each returned, in order."""
    torch.multiprocessing.spawn(_member, args=(body, str(folder), args), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank{number}.pt", weights_only=True) for number in range(2)]


def _member(number: int, body: Callable[..., dict[str, Any]], folder: str, args: tuple[Any, ...]) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for by libraries; they meet in a file
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    torch.save(body(number, *args), Path(folder) / f"rank{number}.pt")
    torch.distributed.destroy_process_group()
    # DistributedDataParallel keeps the group's threads for as long as the process lives. One that still holds a tensor
    # while the interpreter goes away aborts the process now and then; so the interpreter does not go away in steps.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
