from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from astralora.devices.validation import Place, first_problem


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    share: Annotated[float, Field(le=1)] = 0.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner = Inner()
    parts: list[Inner] = []

    @model_validator(mode="after")
    def _not_all(self) -> "Outer":
        if len(self.parts) > 2:
            raise ValueError("parts must be at most two")
        return self


def problem_of(values: Any) -> ValidationError:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(values)
    return error.value


def test_names_the_place_and_the_message() -> None:
    error = problem_of({"inner": {"share": 2}})
    assert first_problem(error) == "inner.share: Input should be less than or equal to 1"
    # Known keys are listed for unknown keys only.
    assert first_problem(error, ["inner"]) == "inner.share: Input should be less than or equal to 1"


def test_describes_the_first_problem_only() -> None:
    error = problem_of({"inner": {"share": 2}, "colour": 1})
    assert first_problem(error) == "inner.share: Input should be less than or equal to 1"


def test_names_an_element_by_its_index() -> None:
    error = problem_of({"parts": [{}, {"share": "much"}]})
    assert first_problem(error).startswith("parts.1.share: Input should be a valid number")


def test_lists_the_known_keys_where_a_key_is_unknown() -> None:
    error = problem_of({"colour": 1})
    assert first_problem(error) == "colour: there is no such key"
    assert first_problem(error, Outer.model_fields) == "colour: there is no such key; known are inner, parts"
    assert first_problem(error, thing="option") == "colour: there is no such option"


def test_finds_the_known_keys_by_the_place() -> None:
    def keys(place: Place) -> list[str]:
        return list(Inner.model_fields if len(place) > 1 else Outer.model_fields)

    assert first_problem(problem_of({"inner": {"colour": 1}}), keys).endswith("known are share")
    assert first_problem(problem_of({"colour": 1}), keys).endswith("known are inner, parts")


def test_names_the_source_and_writes_the_place_as_asked() -> None:
    error = problem_of({"parts": [{"share": 2}]})
    text = first_problem(error, source="run.toml", name=lambda place: f"{place[0]} {place[1]}")
    assert text == "parts 0 in run.toml: Input should be less than or equal to 1"


def test_a_problem_of_the_whole_has_no_place() -> None:
    error = problem_of({"parts": [{}, {}, {}]})
    assert first_problem(error) == "parts must be at most two"
    assert first_problem(error, source="run.toml") == "run.toml: parts must be at most two"
