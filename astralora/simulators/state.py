"""Store the state of a fabricated chip, which changes with time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..devices import derive_generator
from .chip import Chip
from .converters import quantize
from .impairments import Impairments
from .memory import Decay
from .noise import standard_normal
from .physics import LinearPhysics
from .settling import Settling
from .wander import Process, Wander, wander_processes

__all__ = ["ChipState"]

_ROOM_CELSIUS = 25.0


class ChipState:
    """Store the clock, the controls and all drift of a chip.

    Controls pass these stages in order: control DAC, control noise, hysteresis, memory cells, the law of the chip
    (`Chip.act`), and then settling, decay, wander and temperature, which depend on the virtual clock. Programs, vectors
    and `wait` advance the clock. No operation sleeps.

    Args:
        chip: simulated chip.
        impairments: strengths of control noise and drift, and durations of operations.
        seed: seed of the random streams of wander and temperature.
        noise: random stream of the noise that is drawn at every program; shared with the signal path.

    Attributes:
        clock_seconds: time on the virtual clock, in seconds.
    """

    def __init__(self, chip: Chip, impairments: Impairments, seed: int, noise: torch.Generator) -> None:
        self._chip = chip
        self._impairments = impairments
        self._noise = noise
        device = chip.law.device
        self._wander = Wander(
            chip.law.num_controls, wander_processes(impairments), derive_generator(seed, "wander", device=device)
        )
        self._temperature = Wander(  # difference from room temperature, in kelvin
            1,
            [Process(impairments.temperature_std, impairments.temperature_seconds)],
            derive_generator(seed, "temperature", device=device),
        )
        self._settling = Settling(impairments)
        self._decay = Decay(impairments, chip.law.num_controls, seed, noise)
        self.clock_seconds = 0.0
        self._position: Tensor | None = None  # written controls after hysteresis
        self._acting: Tensor | None = None  # acting controls without settling and drift, (num_controls,)
        self._matrix: Tensor | None = None  # present transfer matrix; None if the acting controls have changed

    @property
    def is_programmed(self) -> bool:
        """Return whether the chip has been programmed."""
        return self._acting is not None

    @property
    def depends_on_order(self) -> bool:
        """Return whether the effect of a program depends on earlier programs."""
        law = self._impairments
        return bool(law.write_hysteresis or law.settle_tau_seconds or law.drifts)

    @property
    def temperature_celsius(self) -> float:
        """Return the present temperature of the chip, in degrees Celsius."""
        self._temperature.advance(self.clock_seconds)
        difference = self._temperature.value
        return _ROOM_CELSIUS + (0.0 if difference is None else float(difference[0]))

    def lose_controls(self) -> None:
        """Delete all controls, as a loss of power does."""
        self._acting = self._settling.before = self._matrix = self._position = None

    # -- operations -------------------------------------------------------------------------

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), and advance the clock."""
        before = None if self._acting is None else self._settling.blend(self._acting, self.clock_seconds)
        self._acting = self._write(controls)
        self._matrix = None
        self.clock_seconds += self._program_seconds
        self._settling.start(before, self.clock_seconds)
        self._decay.start(self._acting, self.clock_seconds)

    def program_each(self, controls: Tensor, batch: int) -> Tensor:
        """Program many settings, with vectors after each; call this only if the order does not matter.

        Args:
            controls: (settings, num_controls).
            batch: number of vectors after each program.

        Returns:
            Acting controls during the vectors of each setting, (settings, num_controls).
        """
        acting = self._write(controls)
        times = []
        for _ in range(len(controls)):
            self.clock_seconds += self._program_seconds
            times.append(self.clock_seconds)
            self.clock_seconds += batch * self._impairments.vector_seconds
        self._acting = acting[-1]
        self._matrix = None
        return self._moved(acting, self._wander.path(times), self._temperature.path(times))

    def pass_vectors(self, batch: int) -> None:
        """Advance all drift to the present time, and then advance the clock by ``batch`` vectors."""
        now = self.clock_seconds
        # A list instead of a generator, because every function must be called.
        moved = [
            self._wander.advance(now),
            self._temperature.advance(now),
            self._settling.advance(now),
            self._decay.has_changed(now),
        ]
        if any(moved):
            self._matrix = None
        self.clock_seconds += batch * self._impairments.vector_seconds

    def response(self, dtype: torch.dtype) -> Tensor:
        """Return the present result of `Chip.response` in a dtype."""
        if not isinstance(self._chip.law.physics, LinearPhysics):
            return self._present(dtype)
        if self._matrix is None or self._matrix.dtype != dtype:
            self._matrix = self._chip.response(self._present(dtype))
        return self._matrix

    def drift(self, acting: Tensor) -> Tensor:
        """Add the present wander and the effect of temperature to acting controls, (..., num_controls)."""
        return self._moved(acting, self._wander.value, self._temperature.value)

    # -- saving -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return clock, controls and drift, with the random streams of the drift."""
        return {
            "clock_seconds": self.clock_seconds,
            "acting": self._acting,
            "earlier": self._settling.before,
            "settles_at": self._settling.ends_at,
            "position": self._position,
            "wander": self._wander.state_dict(),
            "warmth": self._temperature.state_dict(),
            "decay": self._decay.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        device = self._chip.law.device
        self.clock_seconds = state["clock_seconds"]
        self._acting, self._settling.before, self._position = (
            None if state[name] is None else state[name].to(device) for name in ("acting", "earlier", "position")
        )
        self._settling.ends_at = state["settles_at"]
        self._matrix = None
        self._wander.load_state_dict(state["wander"])
        self._temperature.load_state_dict(state["warmth"])
        self._decay.load_state_dict(state["decay"])

    # -- controls ---------------------------------------------------------------------------

    @property
    def _program_seconds(self) -> float:
        return self._impairments.program_seconds + self._impairments.settle_seconds

    def _write(self, controls: Tensor) -> Tensor:
        """Compute the acting controls of programs, without drift: (..., num_controls) -> (..., num_controls)."""
        law, chip = self._impairments, self._chip
        written = quantize(controls.detach().to(chip.law.device), chip.law.physics.drive.range, law.control_levels)
        if law.control_noise_std:
            written = written + law.control_noise_std * standard_normal(written, self._noise)
        if law.write_hysteresis:
            half = law.write_hysteresis / 2
            if self._position is not None:
                written = torch.clamp(self._position.to(written.dtype), written - half, written + half)
            self._position = written
        return chip.act(self._decay.write(written))

    def _present(self, dtype: torch.dtype) -> Tensor:
        """Return the present acting controls, (num_controls,)."""
        assert self._acting is not None
        acting = self._settling.blend(self._acting, self.clock_seconds).to(dtype)
        decay = self._decay.factor(self.clock_seconds, dtype)
        return self.drift(acting if decay is None else acting * decay)

    def _moved(self, acting: Tensor, wander: Tensor | None, temperature: Tensor | None) -> Tensor:
        if wander is not None:
            acting = acting + wander.to(acting.dtype)
        if temperature is not None:
            acting = acting + self._impairments.temperature_coefficient * temperature.to(acting.dtype)
        return acting
