"""Test that the chip is safe after every exit; the campaign tests all combinations."""

import pytest

from ..exits import check_exit


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("frame", "SIGINT twice"),
        ("numpy", "SIGTERM, session in a thread, main joins"),
        ("tiled", "half-open by Ctrl-C"),
        ("numpy", "half-open by an error"),
        ("scpi", "out of scope"),
        ("frame", "another chip hangs"),
        ("numpy", "closing fails once"),
    ],
)
def test_the_chip_is_safe(kind: str, name: str) -> None:
    check_exit(kind, name)
