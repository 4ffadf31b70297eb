"""Test that an open device belongs to one process, with every driver."""

import os

import pytest

from ..chips import KINDS
from ..forks import WAYS, check_fork

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_belongs_to_one_process(kind: str, way: str) -> None:
    if way == "joblib":
        pytest.importorskip("joblib")
    check_fork(kind, way)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_is_not_sent_to_a_task_of_ray(kind: str) -> None:
    pytest.importorskip("ray")
    check_fork(kind, "ray")
