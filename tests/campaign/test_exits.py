"""Test that the chip is safe after every exit, with every driver."""

import pytest

from ..chips import KINDS
from ..exits import EXITS, check_exit

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("name", EXITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_chip_is_safe(kind: str, name: str) -> None:
    check_exit(kind, name)
