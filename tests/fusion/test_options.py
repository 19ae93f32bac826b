"""Options of a component: checked when they are made, all at once, against each option's own annotation."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval
from pydantic import TypeAdapter, ValidationError

from fusion.options import Options, OptionsError


@dataclass(frozen=True)
class Walk(Options):
    steps: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    pace: Annotated[float, Gt(0)] | None = None
    slope: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    ground: Literal["grass", "sand"] = "grass"


@dataclass(frozen=True)
class Rest(Options):
    minutes: Annotated[int, Ge(0)] = 0

    def contradictions(self) -> list[str]:
        return [*super().contradictions(), *(["minutes is odd"] if self.minutes % 2 else [])]


@dataclass(frozen=True)
class Trip(Walk, Rest):
    def contradictions(self) -> list[str]:
        return [*super().contradictions(), *(["minutes without pace"] if self.minutes and not self.pace else [])]


def test_values_in_range_are_accepted() -> None:
    for trip in (Trip(), Trip(steps=1, pace=0.5, slope=0.99, ground="sand", minutes=2)):
        assert TypeAdapter(Trip).validate_python(vars(trip)) == trip


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"steps": 0}, ["steps is 0, it must be at least 1 or 'auto'"]),
        ({"steps": "many"}, ["steps is 'many', it must be a whole number, at least 1 or 'auto'"]),
        ({"pace": 0.0}, ["pace is 0.0, it must be above 0"]),
        ({"pace": float("nan")}, ["pace is nan, it must be above 0"]),
        ({"slope": 1.0}, ["slope is 1.0, it must be at least 0 and below 1"]),
        ({"ground": "ice"}, ["ground is 'ice', it must be 'grass' or 'sand'"]),
        ({"minutes": 3}, ["minutes is odd", "minutes without pace"]),
        ({"slope": -1, "ground": None, "minutes": 2}, ["slope is -1", "ground is None", "minutes without pace"]),
    ],
    ids=str,
)
def test_all_problems_are_reported_at_once(values: dict[str, object], problems: list[str]) -> None:
    with pytest.raises(OptionsError) as caught:
        Trip(**values)  # type: ignore[arg-type]
    assert len(caught.value.problems) == len(problems)
    for said, wanted in zip(caught.value.problems, problems, strict=True):
        assert said.startswith(wanted)
        assert said in str(caught.value)
    with pytest.raises(ValidationError):  # the same annotations guard the file
        TypeAdapter(Trip).validate_python(values)


def test_an_unknown_option_of_a_file_is_an_error() -> None:
    with pytest.raises(ValidationError, match="stepz"):
        TypeAdapter(Trip).validate_python({"stepz": 1})


def test_problems_survive_pickling_between_processes() -> None:
    error = OptionsError("one", "two")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.problems, str(again)) == (("one", "two"), "one; two")


def test_options_are_made_without_pydantic() -> None:
    owners = "fusion.store.s3_options, fusion.answers.options, serving.options, training.lanes.capacity"
    code = f"import sys; sys.modules['pydantic'] = None; import {owners}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
