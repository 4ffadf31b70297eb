"""A day of inference on a chip that drifts, with and without compensation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from torch import nn

from devices import Clock, CompensatedDevice, Compensation, Device, Session, clock_of, make_device

from ..training import RunConfig
from ..training.fit import Fit
from ..training.setup import attach_devices, make_devices, make_task

__all__ = ["drift"]

Record = dict[str, Any]

_DAY = 86400.0
# Converters of a good laboratory chip, in front of cells of phase-change memory.
_MEMORY = {
    "pcm": True,
    "control_levels": 256,
    "input_levels": 255,
    "output_levels": 255,
    "output_noise_fraction": 0.01,
}


def drift(
    seeds: Sequence[int],
    *,
    size: int = 64,
    epochs: int = 5,
    times: Sequence[float] = (1.0, 60.0, 600.0, 3600.0, 6 * 3600.0, _DAY),
    columns: int = 4,
    listener: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Train digits through a crossbar that holds still, program a drifting one once, and use it for a day.

    The drifting one is of phase-change memory: programming noise and drift are those that were measured on such cells,
    and each kind of compensation meets the same cells and the same noise. Time passes on the chip's own clock.

    Args:
        seeds: of weights, data order and chip.
        size: inputs, and as many outputs.
        epochs: of training.
        times: seconds after the program at which the test images are classified.
        columns: outputs beside those of the layer, for compensation by columns.
        listener: told every record as it comes.

    Returns:
        Flat records of seed, compensation, seconds, test_accuracy, and what the compensation has taken so far: vectors
        and columns.
    """
    records = []
    for seed in seeds:
        config = RunConfig.load(
            None,
            {
                "seed": seed,
                "epochs": epochs,
                "in_features": size,
                "out_features": size,
                "baseline": False,
                "device": {"name": "matvec", "impairments": "lab"},
            },
        )
        task = make_task(config)
        splits = task.splits()
        still = {name: Session(device) for name, device in make_devices(config, task).items()}
        fit = Fit(config, task, splits, attach_devices(config, task, still))
        for _ in fit.run():
            pass
        for kind in (None, *get_args(Compensation)):
            extra = columns if kind == "columns" else 0
            chip = make_device(
                "matvec", in_features=size, out_features=size + extra, impairments=_MEMORY, seed=seed + 1000
            )
            device: Device = chip if kind is None else CompensatedDevice(chip, kind, every_seconds=0.5, columns=columns)
            used = Fit(config, task, splits, attach_devices(config, task, dict.fromkeys(still, Session(device))))
            _take_over(fit.model, used.model)
            clock: Clock = clock_of(chip)
            _, _ = used.evaluate()  # programs the trained controls
            start = clock.clock_seconds
            for seconds in times:
                clock.wait(max(0.0, seconds - (clock.clock_seconds - start)))
                _, accuracy = used.evaluate()
                spent = 0
                if isinstance(device, CompensatedDevice):
                    spent = device.session.usage_by_purpose["drift"].vectors
                records.append(
                    {
                        "seed": seed,
                        "compensation": kind or "none",
                        "seconds": seconds,
                        "test_accuracy": accuracy,
                        "vectors": spent,
                        "columns": extra,
                    }
                )
                if listener is not None:
                    listener(records[-1])
    return records


def _take_over(trained: nn.Module, other: nn.Module) -> None:
    """All weights and controls, but nothing that was learned of the other chip."""
    state = {name: value for name, value in trained.state_dict().items() if not name.endswith("_extra_state")}
    other.load_state_dict(state, strict=False)
