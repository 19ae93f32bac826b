"""Tasks made of ready pictures: Open Clip Art by folder, and the photographs of Tux Paint's stamps."""

import re
import struct
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from demo.build.icons import fit, is_blank, on_white, trim
from demo.build.records import Picture
from demo.build.sources import deb_folder

SIZE = 96
MAX_PIXELS = 20_000_000
CLIPART = {
    "bird": "animals/birds",
    "insect": "animals/bugs",
    "mammal": "animals/mammals",
    "fruit": "food/fruit",
    "drink": "food/beverages",
    "dessert": "food/desserts",
    "flower": "plants/flowers",
    "house": "buildings/homes",
    "musical instrument": "recreation/music",
    "road sign": "transportation/roadsigns",
    "vehicle": "transportation/vehicles",
    "tool": "tools",
    "clothing": "people/clothing",
    "computer": "computer/hardware",
    "arrow": "shapes/arrows",
}
"""Class -> folder of Open Clip Art."""

CLIPART_STRAYS = re.compile(
    r"animals/birds/(baby_tux|baby-tux|contour_ba|ninja|manager|mirjam|turkey_on|wing_|duck_yello)"
    r"|animals/bugs/(lumaca|ragn|spider|virus|mostric|damselfly)"
    r"|animals/mammals/(bluewh|dolphin|orca|shaezy|skoynk|squeek|mhoo|emule)"
    r"|food/fruit/(juice|slate|tile_|tree|turkey|pie_|champ|kallisti|gumnut|apple_jui|candied|eris|fruitcolle|straw_)"
    r"|food/beverages/(flower|ice_cube|icecube|machin|macchin|mug_toh|glass.png)"
    r"|plants/flowers/(simple_fiv|cartoon|magnolia-w|lotus)"
    r"|buildings/homes/(lighthouse|lowtec|house_fud|houses_|small_hous|big_hous)"
    r"|recreation/music/(45_rpm|a_man|bach|beeth|handel|boombox|CD_|fifties|gramoph|headph|microph|jazz|funny|bass_clef"
    r"|double|simple|musical|quaver|sixteen|treble|piano_theo|vinyl|tpt|war_|trumpet_h|trumpet_s)"
    r"|transportation/roadsigns/(splash|stop-sign|nws|ampel)"
    r"|transportation/vehicles/(cycle_|parking|crossr|curve|quay|queue|lighth|bus_sym|wing_|toy_|depart|shelby|plane_sith|_chev|the_mad|sledge)"
    r"|people/clothing/(earring|gold|feet|portrait|straw|adventurer)"
    r"|shapes/arrows/(cursor|reincar|double_arr)"
    r"|^tools/(?!.*(hammer|axe|saw|screw|wrench|plier|scissor|drill|brush|broom|shovel|rake|spade|trowel|tool|nail"
    r"|cultivat|hedge|pincer|roundpoint|chiave|utensil|mallet|blacksmith|pick|anvil|livella|paint_roll|hoe_|forchet))"
)
"""Found by looking at the contact sheets: notes and composers among the instruments, whales among the
fish."""

PHOTOS = {
    "bird": ["animals/birds"],
    "insect": ["animals/insects"],
    "fish": ["animals/fish"],
    "mammal": [
        "animals/mammals",
        *(
            f"animals/mammals/{kind}"
            for kind in ["apes", "aquatic", "bears", "bovines", "camel", "cats", "deer", "dogs", "equines", "rodents"]
        ),
        "animals/marsupials",
    ],
    "fruit": ["food/fruit"],
    "vegetable": ["food/vegetables"],
    "flower": ["plants/flowers"],
    "vehicle": [
        "military/vehicles",
        *(f"vehicles{kind}" for kind in ("", "/auto", "/construction", "/emergency", "/ship")),
    ],
    "musical instrument": [f"hobbies/music/{kind}" for kind in ["brass", "percussion", "string", "wind"]],
    "tool": ["household/tools"],
    "coin": [f"symbols/money/{where}/coins" for where in ("us", "euro", "canadian")] + ["symbols/money/japanese"],
}
PHOTO_STRAYS = re.compile(r"Brown_slug|Woodlouse|lobster|shrimp|hedgehog|mushroom|sedan_poli|spoke|wheel")
"""Neither insects nor fish; a drawing; not a vegetable; broken or a part of a vehicle."""


def num_pixels(path: Path) -> int:
    """Width x height from the PNG's header: some drawings are poster-sized, 2.5 GB once decoded."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width * height


def read_trimmed(path: Path) -> Image.Image:
    """RGBA of SIZE; big files are shrunk first, for trimming looks at every pixel."""
    image = Image.open(path).convert("RGBA")
    image.thumbnail((800, 800), Image.Resampling.BOX)
    return fit(trim(image), SIZE)


def clipart_pictures(cache: Path) -> list[Picture]:
    root = deb_folder(cache, "openclipart-png") / "usr/share/openclipart/png"
    found = []
    for label, folder in enumerate(CLIPART.values()):
        for path in sorted((root / folder).glob("*.png")):
            if CLIPART_STRAYS.search(f"{folder}/{path.name}") or num_pixels(path) > MAX_PIXELS:
                continue
            image = read_trimmed(path)
            if not is_blank(image):
                found.append(Picture(on_white(image), label, f"{folder}/{path.name}"))
    return found


def series_of(picture: Picture) -> str:
    """Drawings of one series share the start of their names (`apple_jarno_1`, `apple_jarno_2`)."""
    folder, name = picture.origin.rsplit("/", 1)
    return f"{folder}/{name[:8].lower()}"


def clipart(cache: Path, *, test_share: float = 0.34, seed: int = 30) -> tuple[list[Picture], list[Picture]]:
    """(train, test): whole series are held out, not single pictures."""
    everything = clipart_pictures(cache)
    names = sorted({series_of(p) for p in everything})
    held_out = {
        n for n, draw in zip(names, np.random.default_rng(seed).random(len(names)), strict=True) if draw < test_share
    }
    return [p for p in everything if series_of(p) not in held_out], [p for p in everything if series_of(p) in held_out]


def photos(cache: Path) -> list[Picture]:
    """Tux Paint's photographs (GPL-2). Cartoon stamps lie in folders of their own and are not read."""
    root = deb_folder(cache, "tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    found = []
    for label, folders in enumerate(PHOTOS.values()):
        for path in sorted(chain.from_iterable((root / folder).glob("*.png") for folder in folders)):
            origin = str(path.relative_to(root))
            if not PHOTO_STRAYS.search(origin):
                found.append(Picture(on_white(read_trimmed(path)), label, origin))
    return found
