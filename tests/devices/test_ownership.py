"""Test that an open device belongs to the process that opened it; the campaign tests all drivers."""

import copy
import os
import pickle
import signal
import time
from typing import Any

import pytest

from astralora.devices import Session

from ..chip_driver import open_chips
from ..chips import Chip, serve
from ..forks import check_fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize(
    ("kind", "way"), [("tiled", "fork"), ("numpy", "multiprocessing fork"), ("scpi", "data loader")]
)
def test_a_device_belongs_to_one_process(kind: str, way: str) -> None:
    check_fork(kind, way)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["frame", "scpi"])
def test_a_device_can_be_opened_again_while_a_child_of_a_fork_lives(kind: str) -> None:
    with serve(kind, [Chip()]) as uris:
        session = Session(open_chips(kind, uris))
        session.open()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        try:
            session.close()
            session.open()
            session.close()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_sessions_and_drivers_are_not_pickled(bench: Any) -> None:
    sentence = "'bench' cannot be copied or sent to another process; open the device there, for example by calling"
    for item in (Session(bench), bench):
        with pytest.raises(TypeError, match=sentence):
            pickle.dumps(item)


def test_a_copy_of_a_session_is_the_session(bench: Any) -> None:
    session = Session(bench)
    assert copy.copy(session) is session
    assert copy.deepcopy(session) is session
