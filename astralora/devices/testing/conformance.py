"""Run all checks of a device by one function call, or as pytest tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..device import Device
from ..errors import DeviceError
from . import behaviour, claims, matching, noise
from .subject import CheckFailed, NotApplicable, Subject

__all__ = ["CHECKS", "CheckResult", "DeviceConformance", "check_device"]

_FOUND: dict[str, Callable[[Subject], None]] = {
    name.removeprefix("check_"): check
    for module in (noise, matching, behaviour, claims)
    for name, check in vars(module).items()
    if name.startswith("check_") and check.__module__ == module.__name__
}
CHECKS = {name: _FOUND[name] for name in ("spec", *_FOUND)}
"""All checks by name; the docstring of a check states its requirement.

Checks on which others depend come first: the spec, the noise, and that each answer belongs to its vector.
"""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Describe the result of one check.

    Attributes:
        check: name of the check.
        passed: False if the check failed; True if it passed or does not apply.
        detail: reason why the check failed or does not apply; empty if it passed.
    """

    check: str
    passed: bool
    detail: str = ""


def check_device(
    make: Callable[[], Device],
    *,
    seed: int = 0,
    only: Sequence[str] | None = None,
    listener: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Check that a device follows the `Device` interface and its own spec.

    This takes about 100 programs and 2,500 vectors, or 50,000 vectors if noise must be averaged. Tolerances follow
    from the declared noise and levels and the number of compared values: noise makes a correct device fail in fewer
    than one of a million runs. If the device has more noise than the spec claims, only the check ``noise`` fails, and
    the tolerances of the other checks follow from the measured noise.

    Args:
        make: function that returns a new, closed device; called again for every check.
        seed: seed of controls and inputs.
        only: names of checks, from `CHECKS`; None for all.
        listener: function that is called with every result as soon as it is known.

    Raises:
        DeviceError: there is no such check.
    """
    for name in only or ():
        if name not in CHECKS:
            raise DeviceError(f"there is no check {name!r}; known are {', '.join(CHECKS)}")
    run = _Run(make, seed)
    results = []
    for name in only or CHECKS:
        results.append(run.check(name))
        if listener is not None:
            listener(results[-1])
    return results


class _Run:
    """Run checks of one kind of device, with the measured noise where the spec claims too little.

    Without this, a wrong claim would fail all checks that compare answers.
    """

    def __init__(self, make: Callable[[], Device], seed: int) -> None:
        self._make = make
        self._seed = seed
        # Noise to allow in place of a claim that is too small, 0 if the claim is right; None if not measured yet.
        self._noise: float | None = None

    def check(self, name: str) -> CheckResult:
        """Run one check."""
        subject = Subject(self._make, self._seed, self._noise or 0.0)
        result = _result(name, CHECKS[name], subject)
        if name == "noise":
            self._noise = subject.measured_noise
        elif not result.passed and self._noise is None:
            noisy = Subject(self._make, self._seed)
            _result("noise", CHECKS["noise"], noisy)
            self._noise = noisy.measured_noise
            if self._noise:
                return self.check(name)
        return result


def _result(name: str, check: Callable[[Subject], None], subject: Subject) -> CheckResult:
    try:
        check(subject)
        subject.finish()
    except CheckFailed as error:
        return CheckResult(name, False, str(error))
    except NotApplicable as error:
        return CheckResult(name, True, f"does not apply: {error}")
    except Exception as error:
        # A driver may raise any error.
        return CheckResult(name, False, f"failed with {type(error).__name__}: {error}")
    finally:
        with suppress(Exception):
            subject.finish()
    return CheckResult(name, True)


class DeviceConformance:
    """Run all checks as tests of pytest; a subclass makes the device.

    ::

        class TestMyChip(DeviceConformance):
            def make_device(self):
                return MyChip()

    Attributes:
        seed: seed of controls and inputs.
    """

    seed = 0

    def make_device(self) -> Device:
        """Return a new, closed device; called again for every check."""
        raise NotImplementedError("implement make_device, which returns a new, closed device")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, test in _tests():
            if not hasattr(cls, name):
                setattr(cls, name, test)


def _tests() -> Iterator[tuple[str, Callable[[DeviceConformance], None]]]:
    for name, check in CHECKS.items():

        def test(self: DeviceConformance, name: str = name) -> None:
            result = _Run(self.make_device, self.seed).check(name)
            if not result.passed:
                raise AssertionError(result.detail)
            if result.detail:
                _skip(result.detail)

        test.__name__, test.__doc__ = f"test_{name}", check.__doc__
        yield test.__name__, test


def _skip(reason: str) -> None:
    import pytest

    pytest.skip(reason)
