"""The same pictures, however stored, are the same to training and to the service, within what a codec loses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.answers.clip import Clip, build_clip
from fusion.answers.images import decode
from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from serving.images import Cropper, Normaliser, Upload
from tests.fusion.answers.pictures import cmyk, cmyk_jpeg_without_adobe, encoded, on_transparency, sixteen_bits, turned
from tests.tiny import PREPROCESS_CFG, SHAPES, picture, tiny_base
from training.data.task_data import load_task_data
from training.expert import train_expert
from training.recipe import Recipe

COUNT = 40


def grey(index: int) -> Image.Image:
    """A shape in black on white: what every way of storing can hold."""
    image = picture(SHAPES[index % 3], np.random.default_rng(index), size=48).convert("L")
    return Image.eval(image, lambda value: 255 if value > 128 else 0).convert("RGB")


def exif(image: Image.Image, kind: str, orientation: int) -> bytes:
    stored, block = turned(image, orientation)
    return encoded(stored, kind, exif=block, **({} if kind == "PNG" else {"quality": 95}))


WAYS: dict[str, tuple[str, Callable[[Image.Image], bytes], float]] = {
    "EXIF-rotated PNG": ("png", lambda image: exif(image, "PNG", 6), 0.0),
    "EXIF-rotated JPEG": ("jpg", lambda image: exif(image, "JPEG", 8), 0.03),
    "16 bits": ("png", lambda image: encoded(sixteen_bits(image), "PNG"), 0.0),
    "16-bit TIFF": ("tif", lambda image: encoded(sixteen_bits(image), "TIFF"), 0.0),
    "alpha": ("png", lambda image: encoded(on_transparency(image), "PNG"), 0.0),
    "palette": ("png", lambda image: encoded(image.quantize(2), "PNG"), 0.0),
    "1 bit": ("png", lambda image: encoded(image.convert("1"), "PNG"), 0.0),
    "CMYK JPEG of Adobe": ("jpg", lambda image: encoded(cmyk(image), "JPEG", quality=95), 0.03),
    "CMYK JPEG": ("jpg", cmyk_jpeg_without_adobe, 0.03),
    "AVIF": ("avif", lambda image: encoded(image, "AVIF", quality=95), 0.03),
    "WebP": ("webp", lambda image: encoded(image, "WEBP", quality=95), 0.03),
    "JPEG 2000": ("jp2", lambda image: encoded(image, "JPEG2000"), 0.0),
}
"""Suffix, encoder, and how much pixels may differ on average, in units of the model's input (from -1 to 1)."""


@pytest.fixture
def clip(local_store: Store, tmp_path: Path) -> Clip:
    base = tiny_base(local_store)
    return build_clip(base, NodeCache(local_store, tmp_path / "cache").tensors(base.weights))


@pytest.mark.parametrize("way", WAYS)
def test_pictures_are_the_same_to_training_and_service_however_they_are_stored(
    way: str, clip: Clip, tmp_path: Path
) -> None:
    suffix, store, tolerance = WAYS[way]
    wanted = clip.pixels([grey(index) for index in range(COUNT)])
    for index in range(COUNT):
        for split in ("train", "test"):
            path = tmp_path / "data" / split / SHAPES[index % 3] / f"{index:03d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store(grey(index)))
    data = load_task_data("shapes", str(tmp_path / "data"))
    places = [int(Path(sample.origin).stem) for sample in data.train.samples]
    trained = clip.pixels([data.train.image(index) for index in range(COUNT)])
    cropper = Cropper(PREPROCESS_CFG, max_pixels=1_000_000)
    crops = [cropper.crop(Upload(str(index), data.train.encoded(index))) for index in range(COUNT)]
    served = Normaliser(PREPROCESS_CFG).pixels(np.stack(crops))
    texts = clip.class_features(SHAPES, ("a {}.",))
    answers = (clip.image_features(wanted[places]) @ texts.T).argmax(1)
    for found in (trained, served):
        assert float((found - wanted[places]).abs().mean()) <= tolerance + 1e-6
        same = (clip.image_features(found) @ texts.T).argmax(1) == answers
        assert float(same.float().mean()) >= (1.0 if tolerance == 0 else 0.9)
    torch.testing.assert_close(trained, served, rtol=0, atol=1e-6)


def test_the_background_of_a_task_is_learned_stored_and_used_where_the_task_is_named(
    local_store: Store, tmp_path: Path
) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store, tmp_path / "cache")
    for name, colour in (("light", (255, 255, 255)), ("dark", (60, 60, 60))):
        for split in ("train", "test"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(3):  # a square on nothing
                image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
                image.paste((*colour, 255), (5, 5, 20 + index, 30))
                image.save(tmp_path / "data" / split / name / f"{index}.png")
    data = load_task_data("squares", str(tmp_path / "data"), background="black")
    recipe = Recipe(steps=2, batch_size=4, lr=1e-4, warmup_steps=1, augment="none")
    record = train_expert(local_store, cache, base, data, recipe, seed=0)
    fuse_experts(cache, base, [ExpertToFuse.from_record(record)], mode={"name": "signed"})
    predictor = Predictor(cache)
    assert predictor.view().background("squares") == "#000000"
    assert predictor.view().background(None) is None
    opened = Image.open(tmp_path / "data" / "test" / "light" / "0.png")
    on_black, on_white = (decode(encoded(opened, "PNG"), "x", background=colour) for colour in ("black", None))
    query = Query("task", task="squares", rule="mean")  # not joined with class means, which are certain here
    found, wanted, other = (predictor.predict([image], query)[0].top for image in (opened, on_black, on_white))
    assert found == wanted != other
