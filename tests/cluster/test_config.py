"""The configuration: every mistake in one message, paths that mean the same from every folder, recipes that inherit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import Config, TrainOptions, load_config, parse_config
from cluster.run import config_hash
from cluster.serving_config import service_options
from fusion.errors import ConfigError
from training.recipe import Recipe

MINIMAL: dict[str, Any] = {
    "store": "store",
    "base": {"architecture": "ViT-B-16", "weights": "openai"},
    "tasks": [{"name": "pets", "data": "data/pets"}],
}


def parse(folder: Path, **changes: Any) -> Config:
    return parse_config({**MINIMAL, **changes}, folder=folder, where="condu.yaml")


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, trian={}, train={"lane": 2, "lr": "fast"}, serve={"port": 0, "replicas": {"min": 3, "max": 1}})
    said = str(caught.value)
    for part in (
        "trian: unknown key; did you mean 'train'?",
        "train.lane: unknown key; did you mean 'lanes'?",
        "train.lr: Input should be a valid number",
        "serve.port: ",
        "serve.replicas: max: 1 is below min: 3",
    ):
        assert part in said
    assert len(said.splitlines()) == 6


def test_a_key_of_a_nested_list_gets_its_own_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.1\.temlates: unknown key; did you mean 'templates'\?"):
        parse(tmp_path, tasks=[{"name": "a", "data": "x"}, {"name": "b", "data": "y", "temlates": []}])


def test_paths_are_relative_to_the_file_and_urls_stay(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "x.yaml"
    tasks = [
        {"name": "a", "data": "../data/a"},
        {"name": "b", "data": "s3://bucket/b/"},
        {"name": "c", "data": "torchvision:DTD"},
    ]
    base = {"architecture": "tiny.json", "weights": "w.safetensors"}
    path.write_text(yaml.safe_dump({**MINIMAL, "store": "../store", "tasks": tasks, "base": base}))
    config = load_config(path)
    assert config.store == str(tmp_path / "store")
    assert [task.data for task in config.tasks] == [str(tmp_path / "data" / "a"), "s3://bucket/b/", "torchvision:DTD"]
    assert config.base.architecture == str(tmp_path / "configs" / "tiny.json")
    assert parse(tmp_path).base.weights == "openai"


def test_a_tasks_settings_override_the_runs_which_override_the_papers(tmp_path: Path) -> None:
    config = parse(
        tmp_path,
        train={"steps": 50, "warmup_steps": 5, "lr": 0.1},
        tasks=[{"name": "a", "data": "x", "lr": 0.2, "train_templates": "all"}, {"name": "b", "data": "y"}],
    )
    first, second = (config.recipe(task) for task in config.tasks)
    assert (first.steps, first.lr, first.train_templates, first.label_smoothing) == (50, 0.2, "all", 0.2)
    assert (second.lr, second.train_templates) == (0.1, "first")


def test_an_impossible_recipe_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train: warmup_steps is 100, it must be below steps"):
        parse(tmp_path, train={"steps": 10})


def test_a_tasks_own_mistakes_are_reported_with_its_place(tmp_path: Path) -> None:
    tasks = [{"name": "a", "data": "x", "steps": 10}, {"name": "b", "data": "y", "method": "most"}]
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, tasks=tasks, unseen=[{"name": "b", "data": "z"}])
    assert str(caught.value).splitlines()[1:] == [
        "  task name 'b' is used twice: a name is a task's only key",
        "  tasks.0: warmup_steps is 100, it must be below steps, which is 10",
        "  tasks.1: method is 'most', it must be 'auto' or 'full' or 'head' or 'lora'",
    ]


def test_a_value_of_the_wrong_type_is_reported_under_the_files_own_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            tmp_path,
            train={"lanes": 0, "labels": {"zone": 1}, "betas": [0.9]},
            s3=[],
            tasks=[3],
            base={"architecture": 1},
        )
    assert str(caught.value).splitlines()[1:] == [
        "  base.architecture: Input should be a valid string (it is 1)",
        "  base.weights: is required",
        "  tasks.0: must be a mapping",
        "  train.betas.1: is required",
        "  train.lanes: Input should be greater than or equal to 1 (it is 0), or: Input should be 'auto'",
        "  train.labels.zone: Input should be a valid string (it is 1)",
        "  s3: must be a mapping",
    ]


def test_lanes_and_recipe_are_one_section_and_only_the_recipe_is_in_an_experts_identity(tmp_path: Path) -> None:
    train = {"steps": 500, "lanes": 3, "num_loader_threads": 2, "memory_gib": 1.5, "quiet": False}
    config = parse(tmp_path, train=train)
    assert config.train == TrainOptions(steps=500, lanes=3, num_loader_threads=2, memory_gib=1.5, quiet=False)
    assert config.recipe(config.tasks[0]) == Recipe(steps=500)


@pytest.mark.parametrize(
    ("fusion", "settings"),
    [
        ({}, {"name": "lowrank"}),
        ({"quality": 0.5}, {"name": "lowrank", "quality": 0.5}),
        ({"mode": "signed"}, {"name": "signed", "bits": 2}),
        ({"mode": "signed", "bits": 1}, {"name": "signed", "bits": 1}),
        ({"mode": "iterative"}, {"name": "iterative"}),
    ],
    ids=str,
)
def test_a_mode_is_recorded_with_the_options_that_matter(fusion: Any, settings: Any, tmp_path: Path) -> None:
    assert parse(tmp_path, fusion=fusion).fusion.settings() == settings


def test_a_name_is_used_once_among_trained_and_never_trained_tasks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task name 'pets' is used twice"):
        parse(tmp_path, unseen=[{"name": "pets", "data": "x"}])


def test_different_configurations_have_different_hashes(tmp_path: Path) -> None:
    assert config_hash(parse(tmp_path)) == config_hash(parse(tmp_path))
    assert config_hash(parse(tmp_path)) != config_hash(parse(tmp_path, seed=1))


def test_serving_refuses_to_consult_more_experts_than_its_ceiling(tmp_path: Path) -> None:
    config = parse(tmp_path, predict={"top_k": 20})
    with pytest.raises(ConfigError, match=r"top_k \(20\) is above max_top_k \(16\)"):
        service_options(config)
    assert service_options(parse(tmp_path, predict={"top_k": 20}, serve={"max_top_k": 20})).top_k == 20


def test_serving_follows_the_configuration(tmp_path: Path) -> None:
    config = parse(
        tmp_path,
        serve={"replicas": {"min": 2, "max": 8}, "port": 9000, "expert_memory": 7 << 20},
        predict={"top_k": 3},
        s3={"endpoint_url": "http://127.0.0.1:9"},
    )
    options = service_options(config)
    assert (options.replicas.min, options.replicas.max, options.port, options.expert_memory) == (2, 8, 9000, 7 << 20)
    assert options.top_k == 3
    assert options.address.options is not None
    assert options.address.options.endpoint_url == "http://127.0.0.1:9"
    assert service_options(config, port=1234).port == 1234


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_configurations_are_valid(path: Path) -> None:
    assert load_config(path).tasks


def test_the_demo_finds_its_data_in_the_repository() -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    assert len(config.tasks) >= 6
    assert len(config.unseen) >= 2
    for task in (*config.tasks, *config.unseen):
        assert (Path(task.data) / "task.json").is_file()
