"""Describe the impairments of a chip, in the order of the signal path."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, FiniteFloat, model_validator

from ..devices.validation import Described

__all__ = ["PRESETS", "Impairments", "find_impairments"]

_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Levels = Annotated[int, Field(ge=2)] | None


class Impairments(Described):
    """Describe the impairments of a simulated device; all are off by default.

    Control units are the units of acting controls: radians for phases, no unit for conductances. Written controls may
    be volts instead; then the steps of the converters are volts.

    Attributes:
        control_levels: codes of the control DACs over the control range.
        control_noise_std: standard deviation of the error of each control at each program, in the unit of written
            controls.
        write_hysteresis: width of the hysteresis of each control, in the unit of written controls: a control stops when
            it is within half of this width of the written value.
        stuck_fraction: share of controls that stay at a random value.
        dead_fraction: share of controls that stay at the low end of their range.
        pcm: whether conductances are phase-change memory: programming noise and drift then depend on the conductance,
            by the laws that Nandakumar et al. (ICECS 2019) measured; aihwkit uses them too.
        gamma_std: relative spread of the controls' efficiency, drawn once per chip.
        phase_bias_std: spread of the controls' offset, in control units, drawn once per chip.
        splitter_error_std: spread of the angles of a mesh's couplers, in radians, drawn once per chip.
        crosstalk: share of each control's action that each of its four neighbours receives.
        insertion_loss_db: loss of light in the chip, in dB of power.
        input_gain_std: relative spread of the inputs' gains, drawn once per chip.
        input_offset_std: spread of the inputs' offsets, as a fraction of the largest input, drawn once per chip.
        output_gain_std: relative spread of the outputs' gains, drawn once per chip.
        output_offset_std: spread of the outputs' offsets, as a fraction of full scale, drawn once per chip.
        wander_std: standard deviation of each control's slow wander (Ornstein-Uhlenbeck), in control units.
        wander_seconds: correlation time of the wander on the virtual clock, in seconds.
        wander_common: share of the wander's variance that all controls have in common.
        flicker_std: standard deviation of each control's 1/f wander, in control units.
        flicker_seconds: shortest and longest correlation time of the 1/f wander, in seconds; its spectrum is 1/f
            between their inverses.
        temperature_std: standard deviation of the chip's temperature, in kelvin.
        temperature_seconds: correlation time of the temperature, in seconds.
        temperature_coefficient: shift of all controls, in control units per kelvin.
        drift_nu: mean exponent of the controls' decay, g(t) = g (t / t0)^-nu, counted from each program.
        drift_nu_std: spread of this exponent among the controls, drawn once per chip.
        drift_t0_seconds: time t0 after a program at which decay begins, in seconds; ``pcm`` uses it too.
        weight_noise_std: standard deviation of the noise on each entry of the transfer matrix, drawn for every query.
        input_levels: codes of the input DACs over the input range.
        input_noise_std: standard deviation of the noise on each input, in input units.
        output_bound: full scale of the detector, in output units; None for the full scale of the kind.
        output_noise_fraction: standard deviation of the noise on each output, as a fraction of full scale.
        output_noise_relative: standard deviation of the noise on each output, as a fraction of its magnitude; this is
            the inverse of an amplitude SNR.
        shot_noise_fraction: standard deviation of the shot noise of an output at full scale, as a fraction of full
            scale; it grows with the square root of the output's magnitude.
        dead_output_fraction: share of outputs without a signal.
        output_levels: codes of the output ADCs over the output range.
        program_seconds: time to send all controls once, in seconds.
        settle_seconds: waiting time after a program for the chip to settle, in seconds.
        settle_tau_seconds: time constant of the settling, in seconds: controls approach their new values exponentially.
        vector_seconds: time to pass one vector, in seconds.
        program_joules: energy to set all controls once, in joules.
        vector_joules: energy to pass one vector, in joules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    control_levels: _Levels = None
    control_noise_std: _NonNegative = 0.0
    write_hysteresis: _NonNegative = 0.0
    stuck_fraction: _Fraction = 0.0
    dead_fraction: _Fraction = 0.0
    pcm: bool = False
    gamma_std: _NonNegative = 0.0
    phase_bias_std: _NonNegative = 0.0
    splitter_error_std: _NonNegative = 0.0
    crosstalk: _NonNegative = 0.0
    insertion_loss_db: _NonNegative = 0.0
    input_gain_std: _NonNegative = 0.0
    input_offset_std: _NonNegative = 0.0
    output_gain_std: _NonNegative = 0.0
    output_offset_std: _NonNegative = 0.0
    wander_std: _NonNegative = 0.0
    wander_seconds: _Positive = 10.0
    wander_common: _Fraction = 0.0
    flicker_std: _NonNegative = 0.0
    flicker_seconds: tuple[_Positive, _Positive] = (0.1, 1e4)
    temperature_std: _NonNegative = 0.0
    temperature_seconds: _Positive = 600.0
    temperature_coefficient: FiniteFloat = 0.0
    drift_nu: _NonNegative = 0.0
    drift_nu_std: _NonNegative = 0.0
    drift_t0_seconds: _Positive = 20.0
    weight_noise_std: _NonNegative = 0.0
    input_levels: _Levels = None
    input_noise_std: _NonNegative = 0.0
    output_bound: _Positive | None = None
    output_noise_fraction: _NonNegative = 0.0
    output_noise_relative: _NonNegative = 0.0
    shot_noise_fraction: _NonNegative = 0.0
    dead_output_fraction: _Fraction = 0.0
    output_levels: _Levels = None
    program_seconds: _NonNegative = 1e-3
    settle_seconds: _NonNegative = 0.0
    settle_tau_seconds: _NonNegative = 0.0
    vector_seconds: _NonNegative = 1e-6
    program_joules: _NonNegative = 0.0
    vector_joules: _NonNegative = 0.0

    @model_validator(mode="after")
    def _check_flicker_seconds(self) -> Self:
        if not self.flicker_seconds[0] < self.flicker_seconds[1]:
            raise ValueError(
                f"the second value of flicker_seconds must be above the first, but they are {self.flicker_seconds}"
            )
        return self

    @property
    def bounded(self) -> bool:
        """Return whether the detector saturates; without converter, bound or noise, its range has no limit."""
        return self.output_levels is not None or self.output_bound is not None or self.output_noise_fraction > 0

    @property
    def transmission(self) -> float:
        """Return the share of the amplitude that remains after the insertion loss."""
        return 10 ** (-self.insertion_loss_db / 20)

    @property
    def drifts(self) -> bool:
        """Return whether controls decay after a program."""
        return self.pcm or self.drift_nu > 0 or self.drift_nu_std > 0


# Converters for signed values use 2^bits - 1 codes, so that zero is a code.
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


def find_impairments(impairments: str | Impairments) -> Impairments:
    """Return the preset with this name; return an `Impairments` object unchanged.

    Raises:
        ValueError: there is no such preset.
    """
    if isinstance(impairments, Impairments):
        return impairments
    if impairments not in PRESETS:
        raise ValueError(f"there are no impairments named {impairments!r}; known are {', '.join(PRESETS)}")
    return PRESETS[impairments]
