from typing import Any

import pytest

from astralora.common.checks import check_whole
from astralora.common.errors import ConfigurationError


@pytest.mark.parametrize("value", [1, 7])
def test_a_whole_number_is_returned(value: int) -> None:
    assert check_whole("rank", value) == value


@pytest.mark.parametrize(("value", "least"), [(0, 1), (1.0, 1), (True, 1), ("2", 1), (None, 1), (1, 2)])
def test_anything_else_is_refused(value: Any, least: int) -> None:
    with pytest.raises(ConfigurationError, match=f"rank must be a whole number of at least {least}, not {value!r}"):
        check_whole("rank", value, least=least)


def test_a_whole_number_may_be_zero_where_that_is_allowed() -> None:
    assert check_whole("warmup", 0, least=0) == 0
