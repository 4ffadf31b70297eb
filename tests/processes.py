"""Run tests of data-parallel training in a group of two processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

__all__ = ["in_two_processes"]


def in_two_processes(body: Callable[..., dict[str, Any]], folder: Path, *args: Any) -> list[dict[str, Any]]:
    """Call ``body(number, *args)`` in both processes of a group, each with one thread.

    Args:
        body: function to call; each process pickles it.
        folder: empty folder for the results.
        *args: further arguments of the function.

    Returns:
        The results of the processes 0 and 1.
    """
    spawn(_process, args=(body, str(folder), args), nprocs=2)
    return [torch.load(folder / f"rank{number}.pt", weights_only=True) for number in range(2)]


def _process(number: int, body: Callable[..., dict[str, Any]], folder: str, args: tuple[Any, ...]) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # libraries require these; the group uses a file
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    torch.save(body(number, *args), Path(folder) / f"rank{number}.pt")
    torch.distributed.destroy_process_group()
    # DistributedDataParallel keeps the group's threads until the process ends. A thread that still holds a tensor while
    # the interpreter shuts down sometimes aborts the process. os._exit skips this shutdown.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
