"""Flags of 40 countries. Drawing styles differ between the splits (upright rectangles and squares against round,
rounded, waving and hand-drawn ones), the designs cannot: telling a flag by its design is the task.
"""

from pathlib import Path

from PIL import Image, ImageOps

from demo.build.icon_tasks import SIZE
from demo.build.icons import load_set, render_svg
from demo.build.records import Picture

COUNTRIES = {
    "Australia": "au", "Austria": "at", "Belgium": "be", "Brazil": "br", "Canada": "ca",
    "Chile": "cl", "China": "cn", "Cuba": "cu", "Czechia": "cz", "Denmark": "dk", "Egypt": "eg", "Finland": "fi",
    "France": "fr", "Germany": "de", "Greece": "gr", "India": "in", "Israel": "il", "Italy": "it",
    "Jamaica": "jm", "Japan": "jp", "Kenya": "ke", "Mexico": "mx", "Nepal": "np", "Netherlands": "nl",
    "Norway": "no", "Pakistan": "pk", "Peru": "pe", "Poland": "pl", "Portugal": "pt", "South Africa": "za",
    "South Korea": "kr",
    "Spain": "es", "Sweden": "se", "Switzerland": "ch", "Turkey": "tr", "Ukraine": "ua", "Uruguay": "uy",
    "United Kingdom": "gb", "United States": "us", "Vietnam": "vn",
}  # fmt: skip
"""Codes that circle-flags gives to a language (ar, ie) are left out."""
TRAIN_SETS = {
    "flag": ["{code}-4x3", "{code}-1x1"],
    "cif": ["{code}"],
    "emojione": ["flag-for-{name}"],
    "twemoji": ["flag-{name}"],
}
TEST_SETS = {"circle-flags": ["{code}"], "flagpack": ["{code}"]}
BACKGROUNDS = {"train": ["#ffffff", "#cfe3f5", "#6b6b6b"], "test": ["#ffffff", "#f3ead7"]}


def flags_of(cache: Path, sets: dict[str, list[str]]) -> list[tuple[str, int, Image.Image]]:
    """(origin, label, RGBA) of every flag that the sets have."""
    found = []
    for set_name, patterns in sets.items():
        svgs = load_set(cache, set_name)
        for label, (country, code) in enumerate(COUNTRIES.items()):
            slug = country.lower().replace(" ", "-")
            for pattern in patterns:
                name = pattern.format(code=code, name=slug)
                if name in svgs:
                    found.append((f"{set_name}/{name}", label, render_svg(svgs[name], SIZE)))
    return found


def pictures(cache: Path, split: str) -> list[Picture]:
    """The split's flags, shrunk to 3/4 and laid on each of its backgrounds; test flags lean by 5 degrees
    on the second."""
    result = []
    for origin, label, image in flags_of(cache, TRAIN_SETS if split == "train" else TEST_SETS):
        for number, colour in enumerate(BACKGROUNDS[split]):
            flag = ImageOps.expand(image.resize((SIZE * 3 // 4,) * 2, Image.Resampling.LANCZOS), SIZE // 8, (0,) * 4)
            if split == "test" and number:
                flag = flag.rotate(5, Image.Resampling.BICUBIC)
            background = Image.new("RGBA", flag.size, colour)
            result.append(Picture(Image.alpha_composite(background, flag).convert("RGB"), label, origin))
    return result
