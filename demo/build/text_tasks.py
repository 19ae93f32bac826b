"""Tasks made of written signs: handwritten digits, capital letters, scripts, and the never-trained printed digits.

Fonts are held out by whole family, scripts by style (sans for training, serif or Naskh for testing). A rendered
picture is not a font, so the fonts' licences ask nothing of the pictures; the fonts are named all the same.
"""

import csv
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo.build.packages import LETTER_TEST_FONTS, LETTER_TRAIN_FONTS
from demo.build.records import Picture
from demo.build.sources import deb_folder, npm_folder, wheel

SIZE = 96
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
SCRIPTS = {
    "Latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "Greek": "αβγδεζηθικλμνξοπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
    "Cyrillic": "бвгджзийклмнптфцчшщъыьэюяБГДЖЗИЙЛПФЦЧШЩЭЮЯ",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "Hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
    "Devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह",
    "Bengali": "অআইঈউঊএঐওঔকখগঘচছজঝটঠডঢণতথদধনপফবভমযরলশষসহ",
    "Tamil": "அஆஇஈஉஊஎஏஐஒஓகஙசஞடணதநபமயரலவழளறன",
    "Thai": "กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวศษสหอฮ",
    "Georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "Armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆ",
    "Ethiopic": "ሀለሐመሠረሰሸቀበተቸኀነኘአከኸወዐዘዠየደጀገጠጨጰጸፀፈፐ",
}


def font_file(cache: Path, family: str) -> Path:
    """The regular Latin face of a @fontsource family."""
    return npm_folder(cache, f"@fontsource/{family}") / f"files/{family}-latin-400-normal.woff"


def draw_text(text: str, font: Path, *, size: int = SIZE, fill: float = 0.62, ink: int = 0) -> Image.Image:
    """`text` in the middle of a white square; its longer side takes the share `fill` of it."""
    probe = ImageFont.truetype(str(font), 100)
    left, top, right, bottom = probe.getbbox(text)
    scale = fill * size / max(right - left, bottom - top, 1)
    face = ImageFont.truetype(str(font), max(6, round(100 * scale)))
    left, top, right, bottom = face.getbbox(text)
    image = Image.new("L", (size, size), 255)
    corner = ((size - right - left) / 2, (size - bottom - top) / 2)
    ImageDraw.Draw(image).text(corner, text, fill=ink, font=face)
    return image.convert("RGB")


def glyphs(cache: Path, signs: str, families: list[str], seed: int) -> list[Picture]:
    """Every sign in every family; sizes vary a little, so that a size tells nothing."""
    rng = np.random.default_rng(seed)
    return [
        Picture(
            draw_text(sign, font_file(cache, family), fill=rng.uniform(0.5, 0.75), ink=int(rng.integers(0, 90))),
            label,
            f"{family}/{sign}",
        )
        for family in families
        for label, sign in enumerate(signs)
    ]


def letters(cache: Path, split: str) -> list[Picture]:
    families = LETTER_TRAIN_FONTS if split == "train" else LETTER_TEST_FONTS
    return glyphs(cache, LETTERS, families, seed=10 if split == "train" else 11)


def printed_digits(cache: Path) -> list[Picture]:
    """The digits of the families that the letters task holds out for testing: no training sees these
    fonts."""
    return glyphs(cache, DIGITS, LETTER_TEST_FONTS, seed=12)


def handwritten_digits(cache: Path, split: str) -> list[Picture]:
    """scikit-learn's 8 x 8 digits as dark ink on white, 32 x 32. Train and test are far apart in file
    order, which follows the writers; the file is read from the wheel, the package is not imported."""
    with zipfile.ZipFile(wheel(cache, "scikit-learn")) as archive:
        text = gzip.decompress(archive.read("sklearn/datasets/data/digits.csv.gz")).decode()
    rows = np.array(list(csv.reader(io.StringIO(text))), dtype=float)
    first, last = (0, 1100) if split == "train" else (1200, len(rows))
    found = []
    for index in range(first, last):
        grey = Image.fromarray((255 - rows[index, :64].reshape(8, 8) * 255 / 16).astype(np.uint8))
        image = grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")
        found.append(Picture(image, int(rows[index, 64]), f"digits/{index}"))
    return found


def script_fonts(cache: Path, script: str, split: str) -> list[Path]:
    folder = deb_folder(cache, "fonts-noto-core") / "usr/share/fonts/truetype/noto"
    kind = "" if script in ("Latin", "Greek", "Cyrillic") else script
    if split == "train":
        stems = [f"NotoSans{kind}", *{"Arabic": ["NotoKufiArabic"], "Thai": ["NotoLoopedThai"]}.get(script, [])]
    else:
        stems = ["NotoNaskhArabic" if script == "Arabic" else f"NotoSerif{kind}"]
    return [
        path for stem in stems for weight in ("Regular", "Bold") if (path := folder / f"{stem}-{weight}.ttf").exists()
    ]


def scripts(cache: Path, split: str, num_per_class: int) -> list[Picture]:
    """Random strings of 2-5 letters; letters that Greek and Cyrillic share with Latin are not used."""
    rng = np.random.default_rng(20 if split == "train" else 21)
    found = []
    for label, (script, alphabet) in enumerate(SCRIPTS.items()):
        fonts = script_fonts(cache, script, split)
        for _ in range(num_per_class):
            text = "".join(rng.choice(list(alphabet), rng.integers(2, 6)))
            font = fonts[rng.integers(len(fonts))]
            image = draw_text(text, font, fill=rng.uniform(0.75, 0.95), ink=int(rng.integers(0, 90)))
            found.append(Picture(image, label, f"{font.stem}/{text}"))
    return found
