"""What several commands' options mean."""

from __future__ import annotations

import pytest

from cluster.commands.options import names_of
from fusion.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, None),
        ("cat", ("cat",)),
        ("cat, dog ,bird", ("cat", "dog", "bird")),
        ('"bird, flying",cat', ("bird, flying", "cat")),
        ('cat, "a ""big"" dog"', ("cat", 'a "big" dog')),
    ],
)
def test_names_are_a_line_of_csv(text: str | None, names: tuple[str, ...] | None) -> None:
    assert names_of(text, "--classes") == names


@pytest.mark.parametrize("text", ["", " ", "cat,,dog", "cat,", '"cat, dog', '"cat"x,dog'])
def test_what_is_no_list_of_names_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match="--classes"):
        names_of(text, "--classes")
