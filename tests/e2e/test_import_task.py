"""`condu import-task`: a task from an expert of another tool, answered in every way like one that was trained here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fusion.answers.clip import build_clip
from fusion.answers.evidence import Evidence
from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.decouple import read_record
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.experts import find_expert
from fusion.versions.history import Versions
from fusion.versions.verify import verify
from tests.e2e.project import Project
from tests.e2e.test_mistakes import refused
from tests.fusion.checkpoints.forms import adapter, factors, saved
from tests.fusion.checkpoints.hugging_face import Tensors, to_hugging_face
from tests.tiny import COLOURS, tiny_base
from training.data.task_data import load_task_data
from training.expert import train_expert
from training.recipe import Recipe


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.write_config(tasks=[], unseen=[])
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """An expert of the colours, trained for a moment."""
    project = Project(tmp_path_factory.mktemp("trained"))
    base, cache = tiny_base(project.store), NodeCache(project.store)
    data = load_task_data("colours", project.tasks["colours"])
    recipe = Recipe(steps=20, batch_size=16, lr=2e-3, warmup_steps=2, augment="none", label_smoothing=0.0)
    record = train_expert(project.store, cache, base, data, recipe, seed=0)
    assert record.expert is not None
    file = cache.tensors(record.expert)
    return {name: file.tensor(name).clone() for name in file.specs}


def keys(project: Project) -> set[str]:
    """What is in the store, without the base."""
    return {info.key for info in project.store.list("") if not info.key.startswith(("bases/", "data/"))}


def command(project: Project, expert: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("import-task", "condu.yaml", "colours", "--expert", expert, "--data", project.tasks["colours"], *more)


def test_an_imported_task_has_the_record_of_a_trained_one_and_answers_every_question(
    project: Project, trained: Tensors
) -> None:
    path = saved(project.folder / "hf.safetensors", to_hugging_face(trained))
    done = project.condu_here(*command(project, path, "--json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "read" in done.stderr
    assert "Hugging Face names; float32" in done.stderr
    report = json.loads(done.stdout)
    (task,) = report["tasks"]
    assert task["expert"] > task["zero_shot"], "20 steps teach it the colours"
    assert report["version"] == 1
    cache = NodeCache(project.store, project.folder / "cache")
    manifest = Versions(project.store).read(1)
    record = read_record(cache, manifest, "colours")
    assert (record.classes, record.templates) == (tuple(COLOURS), ("a {} picture.", "{}."))
    assert record.prototypes is not None
    assert record.evidence is not None
    evidence = Evidence.from_file(cache.tensors(record.evidence))
    assert evidence.expert is not None
    file = cache.tensors(manifest.base.weights)
    clip = build_clip(manifest.base, file)
    data = load_task_data("colours", project.tasks["colours"])
    pixels = clip.pixels([data.train.image(number) for number in range(len(data.train))])
    own = clip.copy_with(trained.items()).image_features(pixels)
    red = own[torch.from_numpy(data.train.labels) == 0].mean(0)
    torch.testing.assert_close(evidence.expert.means[0].float(), red, rtol=1e-3, atol=1e-3)
    assert verify(Versions(project.store)).findings == ()
    image = data.test.image(0)
    predictor = Predictor(cache)
    for query in (Query("task", task="colours"), Query("labels", labels=tuple(COLOURS)), Query("seen")):
        (answer,) = predictor.predict([image], query)
        assert answer.label in COLOURS, query


def test_it_is_the_task_that_training_would_have_published(project: Project, trained: Tensors) -> None:
    """But for the calibration, which needs images that the expert has not seen."""
    path = saved(project.folder / "plain.safetensors", trained)
    assert project.condu_here(*command(project, path, "--no-evaluate")).returncode == 0
    elsewhere = Project(project.folder / "elsewhere")
    base, cache = tiny_base(elsewhere.store), NodeCache(elsewhere.store)
    recipe = Recipe(steps=20, batch_size=16, lr=2e-3, warmup_steps=2, augment="none", label_smoothing=0.0)
    data = load_task_data("colours", project.tasks["colours"])
    wanted = train_expert(elsewhere.store, cache, base, data, recipe, seed=0)
    (key,) = [key for key in keys(project) if key.startswith("experts/") and key.endswith(".json")]
    found = find_expert(project.store, key.removeprefix("experts/").removesuffix(".json"))
    assert found is not None
    assert wanted.prototypes is not None
    assert found.prototypes is not None
    assert found.prototypes.sha256 == wanted.prototypes.sha256
    assert (found.task, found.classes, found.templates, found.base) == (
        wanted.task, wanted.classes, wanted.templates, wanted.base
    )  # fmt: skip


def test_a_second_call_is_a_no_op_and_another_expert_needs_replace(project: Project, trained: Tensors) -> None:
    path = saved(project.folder / "plain.safetensors", trained)
    for _ in range(2):
        done = project.condu_here(*command(project, path, "--no-evaluate"))
        assert done.returncode == 0, done.stderr
        assert "version 1" in done.stdout
    before = keys(project)
    other = {name: tensor * 1.01 for name, tensor in trained.items()}
    path = saved(project.folder / "other.safetensors", other)
    refused(project, *command(project, path), code=1, says="task name 'colours' is taken in version 1")
    assert keys(project) == before
    done = project.condu_here(*command(project, path, "--no-evaluate", "--replace"))
    assert done.returncode == 0, done.stderr
    assert "version 2" in done.stdout


def test_an_adapter_and_images_without_a_test_split_will_do_with_a_warning(project: Project) -> None:
    source = Path(project.tasks["colours"])
    shutil.rmtree(source / "test")
    for path in (source / "train").iterdir():
        path.rename(source / path.name)
    (source / "train").rmdir()
    folder = project.folder / "adapter"
    folder.mkdir()
    adapter(folder, factors("vision_model.encoder.layers.0.self_attn.q_proj", 4, (64, 64), 0))
    done = project.condu_here(*command(project, folder))
    assert done.returncode == 0, done.stderr
    assert "a LoRA adapter merged into 1 tensor of the base" in done.stderr
    assert "warning: colours: no test split" in done.stderr
    assert "its figures are too good" in done.stderr
    assert "version 1" in done.stdout


def test_bad_input_costs_nothing(project: Project, trained: Tensors) -> None:
    good = saved(project.folder / "good.safetensors", trained)
    nan = dict(trained)
    nan["visual.proj"] = torch.full((64, 32), float("nan"))
    diverged = saved(project.folder / "diverged.safetensors", nan)
    few = saved(project.folder / "few.safetensors", {"visual.proj": trained["visual.proj"]})
    file = TensorFile(project.folder / "base.safetensors")
    write_tensors(project.folder / "same.safetensors", {name: file.tensor(name) for name in file.specs})
    broken = project.folder / "data" / "broken"
    shutil.copytree(project.tasks["colours"], broken)
    next((broken / "train" / "red").iterdir()).write_bytes(b"no image")
    refused(project, *command(project, diverged), code=1, says="tensor 'visual.proj' holds NaN or infinite values")
    refused(project, *command(project, few), code=1, says="does not match the base")
    refused(project, *command(project, project.folder / "none"), code=1, says="none: no such file")
    refused(project, *command(project, good, "--classes", "a,b"), code=1, says="2 class names are given")
    same = (project.folder / "same.safetensors", "--strict")
    refused(project, *command(project, *same), code=1, says="is the base itself")
    refused(project, *command(project, good)[:-1], broken, code=1, says="broken")
    refused(project, "import-task", "condu.yaml", "Bad name", *command(project, good)[3:], code=1, says="ill-formed")
    assert keys(project) == set()
    assert not list((project.folder / "store" / "tmp").iterdir())
