"""The base's pictures in memory: one uint8 array [N, 96, 96, 4] of RGBA, rendered once and kept in the cache."""

import hashlib
import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from demo.build.captions import Subject
from demo.build.icons import load_set, render_svg
from demo.build.text_tasks import draw_text, font_file

log = logging.getLogger(__name__)

SIZE = 96


def render(cache: Path, subject: Subject) -> np.ndarray:
    """RGBA of one subject; a sign is black with its darkness as alpha, like a mono icon."""
    if subject.kind == "sign":
        image = draw_text(subject.icon, font_file(cache, subject.set_name), size=SIZE, fill=0.66).convert("L")
        rgba = Image.new("RGBA", image.size, "black")
        rgba.putalpha(ImageChops.invert(image))
        return np.asarray(rgba)
    return np.asarray(render_svg(load_set(cache, subject.set_name)[subject.icon], SIZE))


def render_group(cache: Path, group: list[Subject]) -> np.ndarray:
    return np.stack([render(cache, subject) for subject in group])


def render_all(cache: Path, items: list[Subject], *, num_processes: int = 2) -> np.ndarray:
    """All pictures; from the cache folder when the same list was rendered before. 1 GB for 28,000."""
    digest = hashlib.sha256(repr([(s.set_name, s.icon) for s in items]).encode()).hexdigest()[:16]
    path = cache / f"pictures-{SIZE}-{digest}.npy"
    if path.exists():
        return np.load(path)
    groups: dict[str, list[int]] = {}
    for index, subject in enumerate(items):
        groups.setdefault(subject.set_name, []).append(index)
    pixels = np.zeros((len(items), SIZE, SIZE, 4), np.uint8)
    with ProcessPoolExecutor(num_processes) as pool:
        jobs = {name: pool.submit(render_group, cache, [items[i] for i in rows]) for name, rows in groups.items()}
        for name, rows in groups.items():
            pixels[rows] = jobs[name].result()
            log.info("rendered set=%s pictures=%d", name, len(rows))
    np.save(path, pixels)
    return pixels
