"""What keeps a chip from being its formula, stage by stage along the signal."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PRESETS", "Impairments"]

_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Levels = Annotated[int, Field(ge=2)] | None


class Impairments(BaseModel):
    """Impairments of a simulated device; everything is off by default.

    Control units are those of the kind, radians for all but ``matvec``.

    Attributes:
        control_levels: codes of the control DACs over the control range.
        control_noise_std: error of each control at each program, in control units.
        stuck_fraction: share of controls that sit at a random setting for good.
        dead_fraction: share of controls that sit at the low end of their range for good.
        gamma_std: relative spread of the controls' efficiency, drawn once per chip.
        phase_bias_std: spread of the controls' offset, in control units, drawn once per chip.
        crosstalk: share of each control's action that reaches each of its four neighbours.
        insertion_loss_db: loss of light on the way through, in dB of power.
        wander_std: standard deviation of each control's slow wander (Ornstein-Uhlenbeck), in control units.
        wander_seconds: correlation time of the wander on the virtual clock.
        input_levels: codes of the input DACs over the input range.
        input_noise_std: noise on each input, in input units.
        output_noise_fraction: noise on each output, as a fraction of the detector's full scale.
        output_levels: codes of the output ADCs over the output range.
        program_seconds: time to send all controls once.
        settle_seconds: time to wait after that until the chip has settled.
        vector_seconds: time to pass one vector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    control_levels: _Levels = None
    control_noise_std: _NonNegative = 0.0
    stuck_fraction: _Fraction = 0.0
    dead_fraction: _Fraction = 0.0
    gamma_std: _NonNegative = 0.0
    phase_bias_std: _NonNegative = 0.0
    crosstalk: _NonNegative = 0.0
    insertion_loss_db: _NonNegative = 0.0
    wander_std: _NonNegative = 0.0
    wander_seconds: Annotated[float, Field(gt=0)] = 10.0
    input_levels: _Levels = None
    input_noise_std: _NonNegative = 0.0
    output_noise_fraction: _NonNegative = 0.0
    output_levels: _Levels = None
    program_seconds: _NonNegative = 1e-3
    settle_seconds: _NonNegative = 0.0
    vector_seconds: _NonNegative = 1e-6

    @property
    def bounded(self) -> bool:
        """Whether the detector is a real one, with a full scale to saturate at."""
        return self.output_levels is not None or self.output_noise_fraction > 0


# Converters for signed values leave one of their 2^bits codes unused, so that zero is a code.
PRESETS: dict[str, Impairments] = {
    "ideal": Impairments(),
    "lab": Impairments(
        control_levels=256,
        gamma_std=0.002,
        phase_bias_std=0.05,
        crosstalk=0.005,
        wander_std=0.01,
        wander_seconds=10.0,
        input_levels=255,
        output_noise_fraction=0.01,
        output_levels=255,
        program_seconds=2e-3,
        settle_seconds=8e-3,
        vector_seconds=1e-6,
    ),
    "harsh": Impairments(
        control_levels=64,
        stuck_fraction=0.01,
        dead_fraction=0.01,
        gamma_std=0.01,
        phase_bias_std=0.1,
        crosstalk=0.01,
        wander_std=0.03,
        wander_seconds=5.0,
        input_levels=63,
        output_noise_fraction=0.05,
        output_levels=63,
        program_seconds=2e-3,
        settle_seconds=8e-3,
        vector_seconds=1e-6,
    ),
}
