from typing import Any

import pytest

from astralora.devices import DeviceSpec

SIZE = {"name": "chip", "in_features": 4, "out_features": 3, "num_controls": 12}


def test_defaults_claim_nothing() -> None:
    spec = DeviceSpec(**SIZE)
    assert not spec.linear
    assert spec.coupling == "dense"
    assert spec.input_range is spec.control_range is spec.output_range is None
    assert spec.input_levels is spec.control_levels is spec.output_levels is None


def test_is_frozen() -> None:
    spec: Any = DeviceSpec(**SIZE)
    with pytest.raises(ValueError, match="Instance is frozen"):
        spec.linear = True


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"colour": "red"}, "colour"),
        ({"in_features": 0}, "in_features"),
        ({"input_range": (1.0, -1.0)}, "the second value of input_range must be above the first"),
        ({"input_range": (0.0, float("inf"))}, "finite"),
        ({"control_levels": 256}, "control_levels needs control_range"),
        ({"input_range": (0.0, 1.0), "input_levels": 1}, "input_levels"),
        ({"coupling": "elementwise", "num_controls": 11}, "one control per matrix entry, 12"),
        ({"coupling": "output", "num_controls": 11}, "multiple of out_features, 3"),
        ({"coupling": "nearest"}, "coupling"),
        ({"noise_std": -0.1}, "noise_std"),
    ],
)
def test_refuses_impossible_values(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DeviceSpec(**{**SIZE, **change})


def test_levels_include_both_ends_of_the_range() -> None:
    spec = DeviceSpec(**SIZE, control_range=(0.0, 5.1), control_levels=256, output_range=(-1.0, 1.0), output_levels=3)
    assert spec.control_step == pytest.approx(0.02)
    assert spec.output_step == pytest.approx(1.0)


def test_a_continuous_control_has_no_step() -> None:
    assert DeviceSpec(**SIZE, control_range=(0.0, 1.0)).control_step is None


@pytest.mark.parametrize(
    ("initial", "complaint"),
    [((0.5, 0.2), "must not be below the first"), ((0.5, 2.5), "must lie within control_range")],
)
def test_initial_range_must_lie_within_the_control_range(initial: tuple[float, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DeviceSpec(name="x", in_features=1, out_features=1, num_controls=1, control_range=(0, 1), initial_range=initial)
