"""`condu serve` as a user runs it: answers, picks up a new task, agrees with the exported expert, stops clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fusion.answers.class_sums import Discriminant
from fusion.answers.evidence import joined_logits
from fusion.answers.predictor import Predictor
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions
from tests.e2e.project import Project
from tests.tiny import tiny_task


@pytest.fixture(scope="module")
def service(finished: Project) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with finished.service() as running:
        yield running


def test_the_command_line_asks_the_service(service: tuple[str, subprocess.Popen[str]], finished: Project) -> None:
    url, _ = service
    image = next((finished.folder / "data" / "colours" / "test" / "blue").iterdir())
    done = finished.condu_here("predict", image, "--server", url, "--task", "colours", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["label"] == "blue"
    wrong = finished.condu_here("predict", image, "--server", url, "--task", "colour")
    assert wrong.returncode == 1
    assert "did you mean colours" in " ".join(wrong.stderr.split())


def test_the_service_gives_the_exported_experts_probabilities(
    service: tuple[str, subprocess.Popen[str]], finished: Project, tmp_path: Path
) -> None:
    """An expert exported and run by plain open_clip, joined with its class means, against the answers over HTTP."""
    import open_clip
    import torch
    from PIL import Image

    url, _ = service
    task = json.loads((finished.folder / "data" / "colours" / "task.json").read_text())
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    out = model_folder / "open_clip_model.safetensors"
    assert finished.condu_here("export", "--store", finished.store_url, "--task", "colours", out).returncode == 0
    (model_folder / "open_clip_config.json").write_bytes((finished.folder / "tiny.json").read_bytes())
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model_folder}")
    data = finished.folder / "data"
    paths = sorted(path for name in ("colours", "shapes-folders") for path in (data / name).rglob("*.png"))[:100]
    assert len(paths) == 100
    predictions = []
    for part in (paths[:50], paths[50:]):
        files = [("image", (path.name, path.read_bytes(), "image/png")) for path in part]
        answer = httpx.post(f"{url}/v1/predict", data={"task": "colours"}, files=files, timeout=60)
        assert answer.status_code == 200, answer.text
        predictions += answer.json()["predictions"]
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in paths])
        features = model.encode_image(pixels, normalize=True)
        texts = [template.replace("{}", name) for name in task["classes"] for template in task["templates"]]
        words = model.encode_text(tokenizer(texts), normalize=True)
        words = words.reshape(len(task["classes"]), -1, words.shape[-1]).mean(1)
        texts_alone = 100 * features @ torch.nn.functional.normalize(words, dim=-1).T
    evidence = Predictor(NodeCache(finished.store)).view().tasks["colours"].evidence
    assert evidence is not None
    assert evidence.expert is not None, "training keeps the class means in the expert's space"
    logits = joined_logits(texts_alone, Discriminant(evidence.expert).scores(features)) / evidence.temperature
    for row, prediction in zip(logits.softmax(1), predictions, strict=True):
        told = {item["label"]: item["probability"] for item in prediction["top"]}
        assert told == pytest.approx(dict(zip(task["classes"], row.tolist(), strict=True)), abs=1e-4)


def test_a_task_is_added_without_the_old_tasks_data_and_served_without_a_restart(
    service: tuple[str, subprocess.Popen[str]], finished: Project, tmp_path: Path
) -> None:
    url, _ = service
    data = tiny_task(tmp_path / "late", classes=("green", "yellow"), seed=11)
    hidden = finished.folder / "data"
    hidden.rename(finished.folder / "data-away")
    try:
        done = finished.condu("add-task", "condu.yaml", "late", "--data", data)
    finally:
        (finished.folder / "data-away").rename(hidden)
    assert done.returncode == 0, done.stdout + done.stderr
    newest = Versions(finished.store).newest()
    assert newest is not None
    assert list(newest.state.tasks)[:3] == ["colours", "shapes", "late"]
    deadline = time.monotonic() + 30
    while httpx.get(f"{url}/v1/tasks", timeout=10).json()["version"] != newest.version:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    image = next((Path(data) / "test" / "green").iterdir())
    answer = httpx.post(f"{url}/v1/predict", data={"task": "late"}, files={"image": image.read_bytes()}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == newest.version
    again = finished.condu("add-task", "condu.yaml", "late", "--data", data, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["version"] == newest.version


def test_ctrl_c_stops_the_service_and_leaves_nothing_running(
    service: tuple[str, subprocess.Popen[str]], finished: Project
) -> None:
    _, process = service
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 0, finished.log()
    deadline = time.monotonic() + 20
    while left := subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert "Traceback" not in finished.log()
