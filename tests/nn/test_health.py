"""Test the running average of a surrogate's health, and its warning."""

import warnings

import pytest

from astralora.nn import StaleGradientWarning
from astralora.nn.health import Health


def feed(health: Health, explained: float, steps: int) -> None:
    for _ in range(steps):
        health.update(explained)


def test_health_is_first_the_mean_and_then_a_running_average() -> None:
    health = Health("chip")
    assert health.value is None
    for explained in (1.0, 0.5, 0.9):
        health.update(explained)
    assert health.value == pytest.approx(0.8)
    health.update(None)  # a batch of noise only
    assert health.value == pytest.approx(0.8)


def test_stale_gradients_give_one_warning_until_they_have_recovered() -> None:
    health = Health("chip")
    feed(health, 1.0, 30)
    for _ in range(2):
        with pytest.warns(StaleGradientWarning, match="predicts only 4. % of .*'chip'.*surrogate='online'"):
            feed(health, 0.0, 40)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            feed(health, 1.0, 80)


def test_the_first_steps_give_no_warning() -> None:
    health = Health("chip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(health, 0.0, 19)
