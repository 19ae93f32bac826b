"""Tasks made of icons and emoji: weather, faces, food, and the never-trained animals and vehicles; charts.

A class is a list of icon names, written out: patterns let strays in (a man who hails a taxi under "hail"). Names are
compared without style suffixes and hyphens, so `cloud-rain-fill` and fxemoji's `cloudrain` are one name.
Whole icon sets are held out for testing: what is measured is the thing in a new drawing style.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image

from demo.build.icons import fit, is_blank, load_set, on_white, plain_name, render_svg
from demo.build.packages import BASE_EMOJI
from demo.build.records import Picture
from demo.build.sources import npm_folder

SIZE = 96
FLUENT_EMOJI = ["fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "fluent-emoji-3d"]

WEATHER = {
    "sunny": "sun sunny day-sunny clear-day sunny-high weather-sunny sun-high sun-medium",
    "cloudy": "cloud clouds cloudy weather-cloudy overcast",
    "partly cloudy": (
        "partly-cloudy partly-cloudy-day cloud-sun sun-cloudy partly-cloud-daytime day-cloudy sun-behind-cloud "
        "sun-behind-small-cloud sun-behind-large-cloud weather-partly-cloudy weather-partly-cloudy-day "
        "partly-sunny-weather day-cloudy-high cloudy-sunny"
    ),
    "rain": (
        "rain rainy rain-drizzle rain-heavy drizzle showers heavy-showers cloud-rain cloud-rain-heavy cloud-drizzle "
        "heavy-rain rainy-heavy cloud-with-rain cloud-showers-heavy weather-rain weather-rainy weather-pouring "
        "weather-drizzle light-rain moderate-rain extreme-rain overcast-rain cloud-rain-wind cloud-showers-water "
        "heavy-rainstorm rainstorm sprinkle"
    ),
    "thunderstorm": (
        "thunderstorm thunderstorms cloud-lightning cloud-lightning-rain cloud-bolt thunderstorm-severe "
        "thunderstorm-strong weather-thunderstorm weather-lightning weather-lightning-rainy cloud-with-lightning "
        "cloud-with-lightning-and-rain cloud-storm storm-showers thunderstorms-rain thunderstorms-extreme "
        "thunderstorms-overcast thunder lightning-cloud cloud-thunder"
    ),
    "snow": (
        "snow snowy snowing snow-heavy cloud-snow cloud-snowfall cloud-snowfall-minimalistic snowflake heavy-snow "
        "moderate-snow light-snow weather-snow weather-snowy weather-snowy-heavy weather-snowflake cloud-with-snow "
        "snowing-heavy overcast-snow extreme-snow heavy-snowstorm snowflake-cold snow-wind"
    ),
    "fog": "fog foggy mist haze cloud-fog weather-fog weather-hazy weather-haze fog-day haze-day overcast-fog",
    "wind": (
        "wind windy windy-strong weather-windy strong-wind weather-windy-variant cloudy-windy cloudy-gusts air "
        "cloud-windy wind-gusts"
    ),
    "clear night": (
        "moon moon-stars clear-night moon-clear night-clear weather-night crescent-moon moonlight weather-moon "
        "starry-night mode-night"
    ),
    "cloudy night": (
        "moon-cloudy cloud-moon partly-cloudy-night cloudy-moon night-cloudy night-partly-cloudy night-alt-cloudy "
        "night-alt-partly-cloudy partly-cloud-night weather-partly-cloudy-night weather-night-partly-cloudy "
        "overcast-night night-cloudy-high night-alt-cloudy-high"
    ),
    "tornado": "tornado tornado-small cloud-tornado weather-tornado tornado1",
    "rainbow": "rainbow rainbow-clear rainbow-cloud cloud-rainbow",
    "umbrella": (
        "umbrella umbrella-with-rain-drops closed-umbrella umbrella-closed umbrella-simple umbrella-one umbrella-two "
        "umbrella-on-ground beach-umbrella"
    ),
    "thermometer": (
        "thermometer thermometer-half thermometer-full thermometer-empty thermometer-quarter "
        "thermometer-three-quarters thermometer-high thermometer-low thermometer-simple thermometer-celsius "
        "thermometer-exterior thermometer-internal thermometer-mercury thermometer-glass thermometer-warm"
    ),
}
FACES = {
    "happy": (
        "grinning-face grinning-face-with-big-eyes grinning-face-with-smiling-eyes smiling-face "
        "beaming-face-with-smiling-eyes smiling-face-with-smiling-eyes slightly-smiling-face "
        "smiling-face-with-open-mouth"
    ),
    "laughing": "face-with-tears-of-joy rolling-on-the-floor-laughing grinning-squinting-face",
    "in love": "smiling-face-with-heart-eyes smiling-face-with-hearts",
    "kissing": "face-blowing-a-kiss kissing-face kissing-face-with-closed-eyes kissing-face-with-smiling-eyes",
    "sad": (
        "frowning-face frowning-face-with-open-mouth slightly-frowning-face disappointed-face pensive-face "
        "worried-face confused-face"
    ),
    "crying": "crying-face loudly-crying-face",
    "angry": "angry-face pouting-face enraged-face face-with-steam-from-nose face-with-symbols-on-mouth",
    "surprised": "astonished-face face-with-open-mouth hushed-face face-screaming-in-fear",
    "sleepy": "sleeping-face sleepy-face yawning-face",
    "sick": (
        "face-with-medical-mask face-with-thermometer face-with-head-bandage nauseated-face face-vomiting sneezing-face"
    ),
    "tongue out": (
        "face-with-tongue winking-face-with-tongue squinting-face-with-tongue zany-face face-with-stuck-out-tongue"
    ),
    "sunglasses": "smiling-face-with-sunglasses",
    "cat": (
        "cat-face grinning-cat grinning-cat-with-smiling-eyes cat-with-tears-of-joy smiling-cat-with-heart-eyes "
        "cat-with-wry-smile kissing-cat weary-cat crying-cat pouting-cat smiling-cat-face-with-open-mouth "
        "grinning-cat-face cat-face-with-tears-of-joy cat-face-with-wry-smile kissing-cat-face weary-cat-face "
        "crying-cat-face pouting-cat-face"
    ),
    "devil": "smiling-face-with-horns angry-face-with-horns imp",
}
FOOD = {
    "apple": "red-apple green-apple apple apple-one apple-whole food-apple apple-fruit shiny-apple",
    "banana": "banana banana-bunch fruit-banana",
    "grapes": "grapes grape fruit-grapes",
    "cherries": "cherries cherry fruit-cherry fruit-cherries",
    "strawberry": "strawberry",
    "watermelon": "watermelon watermelon-one fruit-watermelon",
    "orange": "tangerine orange orange-one orange-slice",
    "lemon": "lemon cut-lemon",
    "pineapple": "pineapple pineapple-one fruit-pineapple",
    "pear": "pear fruit-pear",
    "tomato": "tomato",
    "avocado": "avocado avocado-one",
    "carrot": "carrot food-carrot",
    "corn": "ear-of-corn corn ear-of-maize",
    "mushroom": "mushroom brown-mushroom spotted-mushroom",
    "bread": "bread baguette-bread bread-slice bread-one bread-loaf sliced-bread",
    "croissant": "croissant food-croissant",
    "cheese": "cheese-wedge cheese",
    "egg": "egg egg-one fried-egg egg-fried cooking fried-eggs food-egg egg-fry fried-egg-breakfast raw-egg",
    "hamburger": "hamburger burger hamburger-one",
    "french fries": "french-fries fries fast-food-french-fries",
    "pizza": "pizza slice-of-pizza pizza-slice local-pizza food-pizza full-pizza",
    "hot dog": "hot-dog hotdog food-hot-dog",
    "sushi": "sushi sushis seafood-sushi",
    "ice cream": "ice-cream soft-ice-cream ice-cream-cone icecream icecream-three shaved-ice ice-cream-bowl",
    "donut": "doughnut donut donut-bitten",
    "cookie": "cookie cookies",
    "cake": (
        "birthday-cake shortcake cake cupcake cake-slice cake-candles cake-one cake-three food-cake cake-variant "
        "stairs-cake"
    ),
    "coffee": "hot-beverage coffee coffee-cup coffee-mug drink-coffee mug-hot",
    "beer": "beer-mug clinking-beer-mugs beer beer-stein beer-glass drink-beer beer-mug-empty",
}
ANIMALS = {
    "dog": "dog dog-face guide-dog poodle",
    "cat": "cat cat-face black-cat",
    "horse": "horse horse-face",
    "cow": "cow cow-face ox",
    "pig": "pig pig-face boar",
    "sheep": "ewe ram",
    "mouse": "mouse mouse-face rat hamster",
    "rabbit": "rabbit rabbit-face",
    "bear": "bear polar-bear panda",
    "monkey": "monkey monkey-face gorilla orangutan",
    "elephant": "elephant mammoth",
    "tiger": "tiger tiger-face leopard",
    "chicken": "chicken rooster hatching-chick baby-chick front-facing-baby-chick",
    "bird": "bird parrot dove eagle",
    "penguin": "penguin",
    "fish": "fish tropical-fish blowfish",
    "whale": "whale spouting-whale",
    "octopus": "octopus squid",
    "turtle": "turtle",
    "snake": "snake",
    "frog": "frog",
    "butterfly": "butterfly",
    "bee": "honeybee",
    "spider": "spider",
}
VEHICLES = {
    "car": "automobile oncoming-automobile sport-utility-vehicle racing-car car vehicle-car directions-car",
    "taxi": "taxi oncoming-taxi local-taxi vehicle-cab",
    "bus": "bus oncoming-bus trolleybus minibus vehicle-bus directions-bus bus-front",
    "truck": "delivery-truck articulated-lorry truck vehicle-truck local-shipping truck-profile",
    "train": (
        "locomotive high-speed-train bullet-train train light-rail metro tram vehicle-subway train-front train-profile"
    ),
    "bicycle": "bicycle bike vehicle-bicycle pedal-bike riding",
    "motorcycle": "motorcycle motor-scooter motorbike moped",
    "boat": "sailboat motor-boat speedboat ship passenger-ship ferry canoe boat sailing vehicle-ship directions-boat",
    "airplane": "airplane small-airplane airplane-departure airplane-arrival plane airplane-mode flight",
    "helicopter": "helicopter",
    "rocket": "rocket rocket-launch",
    "tractor": "tractor agriculture",
    "ambulance": "ambulance",
    "fire engine": "fire-engine fire-truck",
    "police car": "police-car oncoming-police-car local-police-car",
}
CHARTS = {
    "bar chart": (
        "chart-bar bar-chart chart-bar-big chart-bar-horizontal bar-chart-horizontal chart-horizontal "
        "chart-bar-decreasing chart-bar-increasing graph-bar-horizontal chart-bar-popular chart-column "
        "chart-vertical chart-column-big chart-simple chart-column-decreasing chart-column-increasing "
        "chart-no-axes-column chart-no-axes-column-increasing chart-no-axes-column-decreasing bar-chart-4-bars "
        "chart-histogram chart-histogram-one bar-chart-2 bar-chart-grouped grouped-bar-chart"
    ),
    "pie chart": (
        "chart-pie pie-chart chart-pie-one chart-pie-slice chart-pie-2 chart-pie-3 chart-pie-4 pie-chart-2 "
        "chart-donut donut-chart chart-donut-variant chart-ring donut-large donut-small"
    ),
    "line chart": (
        "chart-line chart-line-up chart-line-down graph-up graph-down line-chart show-chart chart-spline "
        "chart-line-smooth chart-line-data chart-line-variant trending-up trending-down chart-up chart-down "
        "multiline-chart chart-multiline ssid-chart chart-graph"
    ),
    "scatter plot": (
        "chart-scatter chart-scatter-plot scatter-plot chart-dots chart-dots-2 chart-dots-3 "
        "chart-scatter-plot-hexbin chart-bubble bubble-chart chart-bubble-packed"
    ),
    "area chart": (
        "chart-area area-chart chart-area-smooth chart-areaspline chart-areaspline-variant chart-area-line "
        "chart-line-area chart-area-stepper stacked-line-chart chart-stepper"
    ),
    "flow chart": (
        "flow-chart flowchart diagram-project organization-chart sitemap diagram document-flowchart flowchart-circle "
        "tree-diagram tree-structure hierarchy hierarchy-2 hierarchy-3 workflow"
    ),
}

STRAYS = re.compile(
    r"^(mdi|ri|mingcute|hugeicons|icon-park)/apple(-fill|-line|-01)?$|^icon-park/cooking$"  # a brand; a dish cover
    r"|/police-car-light$|^solar/plane|^material-symbols/ambulance|^meteocons/.*-line$|^meteocons/(?!.*fill)"
    r"|^(mingcute|ri)/haze|^mingcute/sun-2|^icon-park/chart-graph$|^(solar|fluent)/diagram|^material-symbols/(metro|stacked-line)"
    r"|^carbon/taxi|^ri/rocket"
)
"""Icons whose names promise another thing than they show, or whose lines are too pale on white."""

WEATHER_TRAIN = [
    "carbon",
    "ri",
    "solar",
    "material-symbols",
    "fluent",
    "meteocons",
    "mdi",
    "ph",
    "tabler",
    "lucide",
    "hugeicons",
    "fa6-solid",
    "icon-park",
    "twemoji",
    "noto",
    "noto-v1",
    "emojione",
    "streamline-ultimate-color",
]
WEATHER_TEST = ["wi", "bi", "mingcute", "streamline-plump", *FLUENT_EMOJI]
FACES_TRAIN = list(BASE_EMOJI)
FOOD_TRAIN = [
    *BASE_EMOJI,
    *[
        "icon-park",
        "streamline-ultimate-color",
        "game-icons",
        "mdi",
        "hugeicons",
        "ph",
        "fa6-solid",
        "tabler",
        "carbon",
        "ri",
        "solar",
    ],
]
FOOD_TEST = [*FLUENT_EMOJI, "streamline-plump", "mingcute", "fluent"]
VEHICLE_TEST = [*FLUENT_EMOJI, *["carbon", "ri", "bi", "mingcute", "solar", "fluent", "material-symbols"]]
CHARTS_TRAIN = ["ri", "bi", "solar", "mdi", "ph", "lucide", "hugeicons", "tabler", "fa6-solid", "icon-park"]
CHARTS_TEST = [
    "carbon",
    "material-symbols",
    "fluent",
    "mingcute",
    "streamline-plump",
    "healthicons",
    "flat-color-icons",
]


@lru_cache(maxsize=1)
def emoji_files(cache: Path) -> dict[str, Path]:
    """Name -> picture of the 3D Fluent emoji, whose files are named by code point."""
    data = json.loads((npm_folder(cache, "emojibase-data") / "en/data.json").read_text())
    assets = npm_folder(cache, "@lobehub/fluent-emoji-3d") / "assets"
    files = {}
    for entry in data:
        code = entry["hexcode"].lower()
        for path in (assets / f"{code}.webp", assets / f"{code.removesuffix('-fe0f')}.webp"):
            if path.exists():
                files[re.sub(r"[^a-z0-9]+", "-", entry["label"].lower()).strip("-")] = path
    return files


def icons_named(cache: Path, set_name: str, wanted: set[str]) -> Iterator[tuple[str, str, Image.Image]]:
    """(name, plain name, RGBA) of the icons of one set whose plain name is wanted; one a drawing style."""
    if set_name == "fluent-emoji-3d":
        for name, path in emoji_files(cache).items():
            if name.replace("-", "") in wanted:
                yield name, name.replace("-", ""), fit(Image.open(path), SIZE)
        return
    seen = set()
    for name, svg in load_set(cache, set_name).items():
        plain = plain_name(name).replace("-", "")
        whole = name.replace("-", "")
        match = whole if whole in wanted else plain
        style = re.sub(r"-?\d+|-rounded|-sharp", "", name)  # sizes and corners of one drawing are one drawing
        if match in wanted and style not in seen:
            seen.add(style)
            yield name, match, render_svg(svg, SIZE)


def pictures(cache: Path, classes: dict[str, str], set_names: list[str]) -> list[Picture]:
    """All pictures of the classes in the named sets, on white."""
    label_of = {name.replace("-", ""): label for label, names in enumerate(classes.values()) for name in names.split()}
    found = []
    for set_name in set_names:
        for name, plain, image in icons_named(cache, set_name, set(label_of)):
            if not is_blank(image) and not STRAYS.search(f"{set_name}/{name}"):
                found.append(Picture(on_white(image), label_of[plain], f"{set_name}/{name}"))
    return found
