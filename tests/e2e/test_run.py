"""`condu run`, `versions`, `export`, `predict`: the main line, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.decouple import decoupled_tensors
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions
from fusion.versions.showcase import read_showcase
from tests.e2e.project import Project
from tests.tiny import SHAPES, tiny_task


def experts(project: Project) -> set[str]:
    return {info.key for info in project.store.list("experts/") if info.key.count("/") == 1}


def test_a_run_trains_fuses_measures_and_reports(finished: Project) -> None:
    report = json.loads((finished.folder / "out" / "report.json").read_text())
    assert report["version"] == 2
    assert [task["name"] for task in report["tasks"]] == ["colours", "shapes"]
    colours = report["tasks"][0]
    assert colours["expert"] > 90
    assert colours["fused"]["lowrank"] > 90
    assert colours["zero_shot_interval"][0] <= colours["zero_shot"] <= colours["zero_shot_interval"][1]
    assert {"transfer", "avg", "last"} == set(report["metrics"]["condu"])
    assert report["matrices"]["union"][0][1] is None, "the union has no answer before a task is learned"
    assert report["unseen"][0]["n_test"] == 10
    assert report["bytes_per_task"] < report["checkpoint_bytes"] / 8
    assert (finished.folder / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in (finished.folder / "out" / "report.html").read_text()
    showcase = read_showcase(finished.store)
    assert showcase is not None
    assert {name: len(shown.samples) for name, shown in showcase.tasks.items()} == {"colours": 2, "shapes": 2}
    assert showcase.tasks["colours"].answered == colours["answered"]
    assert [m.state.session for m in map(Versions(finished.store).read, (1, 2))] == [1, 2], "one version a session"


def test_other_data_under_a_taken_name_is_refused_before_it_is_trained(finished: Project, tmp_path: Path) -> None:
    other = tiny_task(tmp_path / "other", classes=SHAPES, seed=77)
    before = experts(finished)
    tasks = [{"name": "colours", "data": other}]
    finished.write_config(tasks=tasks)
    try:
        done = finished.condu("run", "condu.yaml")
    finally:
        finished.write_config()
    assert done.returncode == 1
    assert "'colours' is taken" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert experts(finished) == before


def test_an_exported_expert_is_the_decoupled_one_and_loads_in_plain_open_clip(
    finished: Project, tmp_path: Path
) -> None:
    import open_clip
    from safetensors.torch import load_file

    out = tmp_path / "colours.safetensors"
    done = finished.condu_here("export", "--store", finished.store_url, "--task", "colours", "--version", "2", out)
    assert done.returncode == 0, done.stderr
    cache = NodeCache(finished.store, tmp_path / "cache")
    manifest = Versions(finished.store).read(2)
    exported = load_file(out)
    for name, tensor in decoupled_tensors(cache, manifest, "colours"):
        assert torch.equal(exported[name], tensor), name
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "open_clip_config.json").write_bytes((finished.folder / "tiny.json").read_bytes())
    out.rename(tmp_path / "model" / "open_clip_model.safetensors")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")
    predictor = Predictor(cache)
    view = predictor.view(2)
    task = view.tasks["colours"]
    from PIL import Image

    paths = sorted((finished.folder / "data" / "colours" / "test").rglob("*.png"))
    images = [Image.open(path).convert("RGB") for path in paths]
    with torch.inference_mode():
        pixels = torch.stack([preprocess(image) for image in images])
        features = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
        texts = tokenizer([template.format(name) for name in task.classes for template in task.templates])
        words = torch.nn.functional.normalize(model.encode_text(texts), dim=-1)
        words = torch.nn.functional.normalize(words.reshape(len(task.classes), len(task.templates), -1).mean(1), dim=-1)
        plain = 100 * features @ words.T
        expert = predictor.shelf.expert(view, "colours")
        seen = expert.clip.image_features(expert.clip.pixels(images))
        ours = expert.feature_logits(seen, task.classes, task.templates)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)
    answers = predictor.predict(images, Query("task", task="colours", rule="mean"), view=view)
    assert [a.label for a in answers] == [task.classes[i] for i in plain.argmax(1)]


def test_predict_answers_from_the_store(finished: Project) -> None:
    image = next((finished.folder / "data" / "colours" / "test" / "red").iterdir())
    for arguments, space in (
        (("--task", "colours"), "task"),
        (("--labels", "red,circle"), "labels"),
        ((), "seen"),
    ):
        done = finished.condu_here("predict", image, "--store", finished.store_url, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["label_space"] == space
        assert answer["predictions"][0]["label"]
    assert done.returncode == 0


def test_versions_are_listed_and_shown(finished: Project) -> None:
    listed = json.loads(finished.condu_here("versions", "list", "--store", finished.store_url, "--json").stdout)
    assert [version["version"] for version in listed][:2] == [1, 2]
    assert listed[1]["parent"] == {"version": 1, "sha256": listed[0]["sha256"]}
    shown = finished.condu_here("versions", "show", "1", "--store", finished.store_url)
    assert "colours" in shown.stdout
    assert "lowrank" in shown.stdout


def test_doctor_finds_a_sound_store(finished: Project) -> None:
    done = finished.condu("doctor", "condu.yaml")
    assert "put-if-absent work" in done.stdout
    assert "✗ store" not in done.stdout


@pytest.mark.parametrize("command", [(), ("run",), ("fuse",), ("export",), ("versions",), ("serve",), ("predict",)])
def test_every_command_explains_itself(command: tuple[str, ...], bare: Project) -> None:
    done = bare.condu_here(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
