"""The base's pictures and what is said about them: which icons, by what name, with which tags.

Kinds: "emoji", "colour" icons, "mono" icons (black on transparent, recoloured during training) and "sign" (digits and
letters in fonts that no task uses). Nothing of `packages.HELD_OUT_ICONS` is in here.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from demo.build.icons import load_set
from demo.build.packages import BASE_COLOUR, BASE_EMOJI, BASE_FONTS, BASE_MONO
from demo.build.sources import npm_folder

NUM_CAPTIONS = 8
SHARED = [
    "{}", "a {}", "a picture of a {}", "a drawing of a {}", "an image of a {}", "the {}", "a photo of a {}",
    "clip art of a {}", "a cartoon {}",
]  # fmt: skip
TEMPLATES = {
    "emoji": [*SHARED, "an emoji of a {}", "the {} emoji", "{} emoji"],
    "colour": [*SHARED, "a {} icon", "an icon of a {}", "a coloured icon of a {}"],
    "mono": [
        *SHARED,
        "a black icon of a {}",
        "a {} pictogram",
        "a silhouette of a {}",
        "a {} icon",
        "an icon of a {}",
    ],
    "sign": ["{}", "the {}", "a printed {}", "a picture of the {}", "the {} in print"],
}
SKIN = re.compile(
    r"skin-tone|-(light|medium|dark)$|medium-(light|dark)|^family-|^couple-|^kiss-(?!mark)|holding-hands-|light-skin"
)
VARIANT = re.compile(
    r"-(outline|outlined|off|plus|minus|alert|check|cog|edit|remove|lock|clock|settings|sync|refresh|arrow|up|down|left"
    r"|right|cancel|add|search|x|variant|box|circle|square|\d+)$"
)
FAMILY = re.compile(
    r"^(file|folder|account|format|brand|arrow|arrows|border|layout|align|user|users|cloud-(?!rain|snow|sun|moon|fog"
    r"|light|bolt|drizzle|hail|thunder|showers)|microsoft|google|apple-(?!whole)|database|battery-|wifi|signal|network"
    r"|message|mail|text|chevron|chevrons|corner|git|code|message|chat|calendar-|circle-|square-)-"
)
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Subject:
    """One picture to be: where it is from, its name in words, and other words for it."""

    set_name: str
    icon: str
    kind: str
    name: str
    tags: list[str] = field(default_factory=list)


def reworded(name: str) -> str:
    """Names as people say them: flags, keycaps, mdi's `numeric` and `alpha`."""
    name = name.replace("-", " ").strip()
    name = re.sub(r"^flag (for )?(?!in hole)(?=\w)", "flag of ", name)
    name = re.sub(r"^(keycap|numeric) (\d+)$", r"digit \2", name)
    name = re.sub(r"^(alpha|regional indicator( symbol letter)?|letter) (\w)$", r"letter \3", name)
    return name


def emoji_words(cache: Path) -> dict[str, tuple[str, list[str]]]:
    """Slug -> (label, tags and sub-group) of emojibase; also by slug without hyphens, as fxemoji names
    them."""
    folder = npm_folder(cache, "emojibase-data") / "en"
    groups = {g["order"]: g["message"] for g in json.loads((folder / "messages.json").read_text())["subgroups"]}
    words = {}
    for entry in json.loads((folder / "data.json").read_text()):
        label = entry["label"].lower()
        tags = [t for t in entry.get("tags", []) if re.fullmatch(r"[a-z0-9' -]{2,}", t)]
        if entry.get("subgroup") in groups:
            tags.append(re.sub(r"\W+", " ", groups[entry["subgroup"]]).strip())
        slug = re.sub(r"[^a-z0-9]+", "-", label).strip("-")
        words[slug] = words[slug.replace("-", "")] = (re.sub(r"[^\w' ]+", "", label), tags)
    return words


def emoji_subjects(cache: Path) -> Iterator[Subject]:
    words = emoji_words(cache)
    for set_name in BASE_EMOJI:
        for icon in load_set(cache, set_name):
            unspaced = set_name == "fxemoji" and icon not in words  # "foxtearofjoy": no name in words
            if not SKIN.search(icon) and not unspaced:
                name, tags = words.get(icon, (icon, []))
                yield Subject(set_name, icon, "emoji", reworded(name), tags)


def colour_subjects(cache: Path) -> Iterator[Subject]:
    for set_name in BASE_COLOUR:
        for icon in load_set(cache, set_name):
            name = re.sub(r"(-(one|two|three|four|five|six|\d+))+$", "", icon)
            if set_name == "fluent-color":
                name = re.sub(r"-\d+$", "", icon)
            if set_name.startswith("streamline"):
                name = " ".join(name.split("-")[-3:])  # "animal-products-egg": sections first, the thing last
            yield Subject(set_name, icon, "colour", reworded(name))


def mono_subjects(cache: Path) -> Iterator[Subject]:
    for set_name in BASE_MONO:
        for icon in load_set(cache, set_name):
            style = {"ph": "-duotone", "tabler": "-filled"}.get(set_name, "")  # one of their many styles
            if not icon.endswith(style) or (set_name == "healthicons" and icon.endswith("-outline")):
                continue
            name = re.sub(r"-(duotone|filled)$", "", icon)
            words = name.split("-")
            drop = VARIANT.search(name) and set_name not in ("game-icons", "healthicons")
            if re.fullmatch(r"(numeric|alpha|letter|number)-\w", name):
                drop = False
            if drop or FAMILY.search(name) or len(words) > (4 if set_name == "game-icons" else 3):
                continue
            yield Subject(set_name, icon, "mono", reworded(name))


def sign_subjects() -> Iterator[Subject]:
    """Digits and capital letters; `set_name` is the font family."""
    for family in BASE_FONTS:
        for digit, word in enumerate(NUMBER_WORDS):
            yield Subject(family, str(digit), "sign", f"digit {digit}", [f"number {digit}", f"number {word}"])
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            yield Subject(family, letter, "sign", f"letter {letter}", [f"capital letter {letter}"])


def subjects(cache: Path) -> list[Subject]:
    """Everything, in a fixed order; a mono icon whose name comes again inside its set is dropped."""
    seen, result = set(), []
    for generator in (emoji_subjects(cache), colour_subjects(cache), mono_subjects(cache), sign_subjects()):
        for subject in generator:
            key = (subject.set_name, subject.name)
            if key not in seen or (subject.kind in ("emoji", "colour") and subject.set_name != "fluent-color"):
                seen.add(key)
                result.append(subject)
    return result


def caption(subject: Subject, rng: np.random.Generator) -> str:
    """One random thing to say: tags alone, the name with tags, a tag, the last words of the name, or the
    name."""
    template = rng.choice(TEMPLATES[subject.kind])
    tags, draw = subject.tags, rng.random()
    if subject.kind == "sign":
        return template.format(subject.name if draw < 0.6 else rng.choice(tags))
    if tags and draw < 0.25:
        return ", ".join(rng.permutation(tags)[: rng.integers(1, 5)])
    if tags and draw < 0.45:
        return ", ".join([template.format(subject.name), *rng.permutation(tags)[:2]])
    if tags and draw < 0.60:
        return template.format(rng.choice(tags))
    words = subject.name.split()
    if draw > 0.90 and len(words) > 1:
        return template.format(" ".join(words[-rng.integers(1, 3) :]))
    return template.format(subject.name)


def captions(items: list[Subject], *, seed: int = 2) -> list[list[str]]:
    """NUM_CAPTIONS captions a picture, drawn once."""
    rng = np.random.default_rng(seed)
    return [[caption(subject, rng) for _ in range(NUM_CAPTIONS)] for subject in items]
