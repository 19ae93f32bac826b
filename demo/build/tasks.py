"""Build every task of the demo: `demo/tasks` (trained), `demo/unseen` (never trained), `demo/more` (a plain folder).

    python -m demo.build.tasks --cache DIR [--only NAME ...]

Some three minutes on one core. The same packages give the same pictures: every random choice has a seed. Sources,
counts and licences are told in `demo/DATA.md`.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from demo.build import flag_task, icon_tasks, picture_tasks, text_tasks
from demo.build.records import Picture, TaskSpec, cap, drop_repeats, make_splits, write_task
from demo.build.sources import add_cache_argument, fetch_all

DEMO = Path(__file__).resolve().parents[1]
Splits = dict[str, list[Picture]]


def icon_source(set_names: list[str]) -> str:
    return ", ".join("@lobehub/fluent-emoji-3d" if "3d" in name else f"@iconify-json/{name}" for name in set_names)


def digits(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "digits",
        list(text_tasks.DIGITS),
        ["the digit {}", "the number {}", "a handwritten number {}"],
        "scikit-learn 1.9.1, load_digits: UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak), test part",
        "BSD-3-Clause (scikit-learn ships the file; the UCI repository is said to offer the data under CC-BY-4.0)",
    )
    sides = [text_tasks.handwritten_digits(cache, split) for split in ("train", "test")]
    return spec, make_splits(*sides, train_cap=80, test_cap=25)


def letters(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "letters",
        list(text_tasks.LETTERS),
        ["the letter {}", "a capital letter {}", "letter {}"],
        "rendered from 60 @fontsource families 5.3.0, 20 of them held out for testing",
        "rendered here; the fonts are OFL-1.1, Apache-2.0 or UFL-1.0",
    )
    sides = [text_tasks.letters(cache, split) for split in ("train", "test")]
    return spec, make_splits(*sides, train_cap=40, test_cap=10)


def scripts(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "scripts",
        list(text_tasks.SCRIPTS),
        ["text in the {} script", "{} letters", "{} writing"],
        "random letters rendered from fonts-noto-core 20201225-1: sans for training, serif or Naskh for testing",
        "rendered here; the fonts are OFL-1.1",
    )
    sides = [text_tasks.scripts(cache, "train", 90), text_tasks.scripts(cache, "test", 22)]
    return spec, make_splits(*sides, train_cap=80, test_cap=20)


def weather(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "weather",
        list(icon_tasks.WEATHER),
        ["a weather icon of {}", "{} weather", "an icon of {}"],
        f"train {icon_source(icon_tasks.WEATHER_TRAIN)}; test {icon_source(icon_tasks.WEATHER_TEST)}",
        "by set: Apache-2.0, MIT, ISC, OFL-1.1, CC-BY-4.0",
    )
    sides = [
        icon_tasks.pictures(cache, icon_tasks.WEATHER, sets)
        for sets in (icon_tasks.WEATHER_TRAIN, icon_tasks.WEATHER_TEST)
    ]
    return spec, make_splits(*sides, train_cap=50, test_cap=18)


def clipart(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "clipart",
        list(picture_tasks.CLIPART),
        ["clip art of a {}", "a drawing of a {}", "a {}"],
        "openclipart-png 1:0.18+dfsg-19, by folder; whole series of drawings held out",
        "public domain (dedicated by the artists)",
    )
    return spec, make_splits(*picture_tasks.clipart(cache), train_cap=45, test_cap=20)


def faces(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "faces",
        list(icon_tasks.FACES),
        ["a {} face", "an emoji of a {} face", "a {} emoji"],
        f"train {icon_source(icon_tasks.FACES_TRAIN)}; test {icon_source(icon_tasks.FLUENT_EMOJI)}",
        "train CC-BY-4.0 and Apache-2.0 by set; test MIT (Microsoft)",
    )
    sides = [
        icon_tasks.pictures(cache, icon_tasks.FACES, sets) for sets in (icon_tasks.FACES_TRAIN, icon_tasks.FLUENT_EMOJI)
    ]
    return spec, make_splits(*sides, train_cap=40, test_cap=20)


def food(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "food",
        list(icon_tasks.FOOD),
        ["a {}", "a drawing of a {}", "an emoji of a {}"],
        f"train {icon_source(icon_tasks.FOOD_TRAIN)}; test {icon_source(icon_tasks.FOOD_TEST)}",
        "by set: Apache-2.0, MIT, CC-BY-4.0, CC-BY-3.0; test MIT, Apache-2.0, CC-BY-4.0",
    )
    sides = [
        icon_tasks.pictures(cache, icon_tasks.FOOD, sets) for sets in (icon_tasks.FOOD_TRAIN, icon_tasks.FOOD_TEST)
    ]
    return spec, make_splits(*sides, train_cap=40, test_cap=10)


def flags(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "flags",
        list(flag_task.COUNTRIES),
        ["the flag of {}", "flag of {}", "a flag, {}"],
        f"train {icon_source(list(flag_task.TRAIN_SETS))}; test {icon_source(list(flag_task.TEST_SETS))}",
        "MIT, CC0-1.0, CC-BY-4.0 by set; test MIT",
    )
    sides = [flag_task.pictures(cache, split) for split in ("train", "test")]
    return spec, make_splits(*sides, train_cap=15, test_cap=4)


def test_only(pictures: list[Picture], num_per_class: int) -> Splits:
    return {"test": cap(drop_repeats(pictures), num_per_class, seed=0)}


def printed_digits(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "printed_digits",
        list(text_tasks.DIGITS),
        ["the digit {}", "the number {}", "a printed number {}"],
        "rendered from the 20 @fontsource families 5.3.0 that the letters task holds out",
        "rendered here; the fonts are OFL-1.1, Apache-2.0 or UFL-1.0",
    )
    return spec, test_only(text_tasks.printed_digits(cache), 20)


def animals(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "animals",
        list(icon_tasks.ANIMALS),
        ["a {}", "a drawing of a {}", "an emoji of a {}"],
        icon_source(icon_tasks.FLUENT_EMOJI),
        "MIT (Microsoft)",
    )
    return spec, test_only(icon_tasks.pictures(cache, icon_tasks.ANIMALS, icon_tasks.FLUENT_EMOJI), 12)


def vehicles(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "vehicles",
        list(icon_tasks.VEHICLES),
        ["a {}", "an icon of a {}", "a drawing of a {}"],
        icon_source(icon_tasks.VEHICLE_TEST),
        "by set: MIT, Apache-2.0, CC-BY-4.0",
    )
    return spec, test_only(icon_tasks.pictures(cache, icon_tasks.VEHICLES, icon_tasks.VEHICLE_TEST), 16)


def photos(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "photos",
        list(picture_tasks.PHOTOS),
        ["a photo of a {}", "a {}", "a picture of a {}"],
        "tuxpaint-stamps-default 2022.06.04-1, photographs by folder; see NOTICE.md beside this file",
        "GPL-2 (see COPYING beside this file)",
    )
    return spec, test_only(picture_tasks.photos(cache), 35)


def charts(cache: Path) -> tuple[TaskSpec, Splits]:
    spec = TaskSpec(
        "charts",
        list(icon_tasks.CHARTS),
        ["a {}", "an icon of a {}", "a drawing of a {}"],
        f"train {icon_source(icon_tasks.CHARTS_TRAIN)}; test {icon_source(icon_tasks.CHARTS_TEST)}",
        "by set: Apache-2.0, MIT, ISC, CC-BY-4.0",
    )
    sides = [
        icon_tasks.pictures(cache, icon_tasks.CHARTS, sets)
        for sets in (icon_tasks.CHARTS_TRAIN, icon_tasks.CHARTS_TEST)
    ]
    return spec, make_splits(*sides, train_cap=45, test_cap=16)


Builder = Callable[[Path], tuple[TaskSpec, Splits]]
TRAINED: list[Builder] = [digits, letters, scripts, weather, clipart, faces, food, flags]
UNSEEN: list[Builder] = [printed_digits, animals, vehicles, photos]
AS_FOLDERS: list[Builder] = [charts]


def write_folders(folder: Path, spec: TaskSpec, splits: Splits) -> str:
    """The task as users have them: one folder a class, PNG files, templates in an optional `task.json`."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, pictures in splits.items():
        for number, picture in enumerate(pictures):
            target = folder / split / spec.classes[picture.label]
            target.mkdir(parents=True, exist_ok=True)
            name = picture.origin.replace("/", "--")
            picture.image.quantize(64).save(target / f"{name}-{number}.png", optimize=True)
    (folder / "task.json").write_text(json.dumps({"templates": spec.templates}, indent=1) + "\n")
    size_mb = sum(f.stat().st_size for f in folder.rglob("*.png")) / 1e6
    return (
        f"{spec.name}: {len(spec.classes)} classes, "
        + ", ".join(f"{k} {len(v)}" for k, v in splits.items())
        + (f", {size_mb:.2f} MB")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cache_argument(parser)
    parser.add_argument("--out", type=Path, default=DEMO, help="folder that gets tasks/, unseen/ and more/")
    parser.add_argument("--only", nargs="*", help="names of the tasks to build; all by default")
    args = parser.parse_args()
    cache = args.cache.resolve()
    fetch_all(cache)
    for place, builders in (("tasks", TRAINED), ("unseen", UNSEEN), ("more", AS_FOLDERS)):
        for build in builders:
            if args.only and build.__name__ not in args.only:
                continue
            spec, splits = build(cache)
            write = write_folders if place == "more" else write_task
            print(write(args.out / place / spec.name, spec, splits), flush=True)


if __name__ == "__main__":
    main()
