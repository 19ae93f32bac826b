"""A configuration's text: what two readers of YAML would read differently is an error that names the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_config
from cluster.config_yaml import read_yaml
from fusion.errors import ConfigError

HEAD = "store: ./store\nbase: {architecture: ViT-B-16, weights: openai}\n"


def values(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return read_yaml(path).values


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-5", 1e-5), ("1E3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("0", 0), ("0o17", 15), ("0x1F", 31),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("'yes'", "yes"), ('"0100"', "0100"),
        ("1:30", "1:30"), ("2026-01-02", "2026-01-02"), ("1_000", "1_000"), ("y", "y"), ("'${'", "${"), 
        ("none", "none"),
        ("[1e-5, 2e-5]", [1e-5, 2e-5]),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(tmp_path: Path, text: str, meant: object) -> None:
    found = values(tmp_path, f"a: {text}\n")["a"]
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "Yes", "NO", "Off"])
@pytest.mark.parametrize("text", ["a: 1\nflip: {}\n", "a: 1\nclasses: [x, {}]\n", "a: 1\n{}: 2\n"])
def test_an_unquoted_switch_is_an_error_with_its_line(tmp_path: Path, word: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"line 2: {word} is true or false to some .*write true or .* or '{word}'"):
        values(tmp_path, text.format(word))


def test_a_number_that_looks_octal_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3: 0100 is 100 to some .* octal to others: write 100, or '0100'"):
        values(tmp_path, "a:\n  b: 1\n  seed: 0100\n")


@pytest.mark.parametrize("text", [".inf", "-.Inf", ".nan", ".NaN", "nan", "inf", "1e999"])
def test_what_is_not_finite_is_an_error_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"line 2: .*finite"):
        values(tmp_path, f"a: 1\nlr: {text}\n")


def test_keys_that_are_given_twice_are_all_named_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        values(tmp_path, "tasks: []\ntrain: {lr: 1, lr: 2}\ntasks:\n  - a\n")
    assert "line 2: the key 'lr' is given twice, first on line 2" in str(caught.value)
    assert "line 3: the key 'tasks' is given twice, first on line 1" in str(caught.value)


def test_an_environment_variable_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")
    found = values(
        tmp_path, "store: ${DATA_ROOT}/store\ntasks: [{data: '${DATA_ROOT}/x', templates: ['a ${DATA_ROOT} {}']}]\n"
    )
    assert found["store"] == "/data/store"
    assert found["tasks"][0] == {"data": "/data/x", "templates": ["a /data {}"]}


def test_a_variable_that_is_not_set_or_has_no_braces_is_an_error_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError) as caught:
        values(tmp_path, "store: ${NOWHERE}/store\ntasks:\n  - {name: a, data: $HOME/x}\n")
    assert "line 1: '${NOWHERE}/store': the environment variable 'NOWHERE' is not set" in str(caught.value)
    assert "line 3: '$HOME/x': write ${HOME}" in str(caught.value)


def test_a_price_is_no_variable(tmp_path: Path) -> None:
    assert values(tmp_path, "classes: [$100 bill, US$, $NAME]\n")["classes"] == ["$100 bill", "US$", "$NAME"]


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    found = values(tmp_path, "a: &one {lr: 1e-4, steps: 5}\nb: {<<: *one, steps: 6}\n")
    assert found["b"] == {"lr": 1e-4, "steps": 6}


def test_mistakes_in_a_file_are_named_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        HEAD + "tasks:\n  - {name: a, data: x}\n  - name: b\n    data: y\n    lr: -1\ntrian: {}\ntrain: {lr: fast}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    said = str(caught.value).splitlines()
    for key, line in (("tasks.1.lr", 7), ("trian", 8), ("train.lr", 9)):
        assert any(one.startswith(f"  {key}: ") and one.endswith(f"(line {line})") for one in said)


def test_the_shipped_configurations_are_read_without_a_mistake() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")):
        load_config(path)
