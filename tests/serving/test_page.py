"""The page at `/`, as people meet it: in Chromium, over HTTP, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.showcase import Sample, Showcase, Shown, show_in
from serving.tokens.registry import add_token
from serving.tokens.token import new_token
from tests.serving.browsing import chromium, opened, served
from tests.serving.helpers import pictures, png, publish_tasks
from tests.serving.plain import PlainService

pytestmark = pytest.mark.processes

_SAMPLE = pictures("circle")[0]
_ROGUE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, evidence=True)
    manifest = publish_tasks(store, {"rogue": ("green", _ROGUE)}, evidence=True)
    shown = {
        name: Shown(entry.expert_sha256, 40, 25.0, 92.5, (Sample("circle", "image/png", png(_SAMPLE)),))
        for name, entry in manifest.state.tasks.items()
    }
    show_in(store, Showcase(manifest.version, shown))
    return store


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def root(store: Store, browser: Browser) -> Iterator[str]:
    with served(PlainService(store)) as found:
        yield found


@pytest.fixture
def page(browser: Browser, root: str) -> Iterator[Page]:
    with opened(browser, root) as found:
        yield found


def _give(page: Page, *names: str) -> None:
    files = [
        {"name": f"{name}.png", "mimeType": "image/png", "buffer": png(one)}
        for name, one in zip(names, pictures(*names), strict=True)
    ]
    page.set_input_files("#files", files)  # type: ignore[arg-type]


def test_an_image_is_answered_as_soon_as_it_is_chosen(page: Page, store: Store) -> None:
    _give(page, "circle", "red")
    answers = page.locator(".answer")
    expect(answers).to_have_count(2)
    wanted = Predictor(NodeCache(store)).predict(pictures("circle", "red"), Query("seen"))
    for number, prediction in enumerate(wanted):
        first = answers.nth(number).locator(".bars li").first
        expect(first).to_contain_text(str(prediction.top[0][1]))
        width = first.locator(".fill").evaluate("bar => bar.getBoundingClientRect().width / bar.parentNode.clientWidth")
        assert width == pytest.approx(prediction.probability, abs=0.02)
    expect(answers.first).to_contain_text("version 2")


def test_labels_of_ones_own_and_a_named_task(page: Page) -> None:
    _give(page, "circle")
    page.get_by_label("Which of these?").check()
    page.fill("#labels", "circle\na boat, square")
    page.get_by_role("button", name="Ask", exact=True).click()
    answer = page.locator(".answer")
    expect(answer).to_contain_text("Taught before:")
    expect(answer.locator(".bars li")).to_have_count(3)
    page.get_by_label("You know the task").check()
    page.select_option("#task", "colours")
    expect(answer).to_contain_text("You named colours: its expert alone answered.")
    page.locator(".card", has_text="shapes").get_by_role("button").click()
    expect(answer).to_contain_text("You named shapes")


def test_a_sample_can_be_tried(page: Page) -> None:
    expect(page.locator("#samples button")).to_have_count(4)
    page.locator("#samples button").first.click()
    expect(page.locator(".answer")).to_have_count(1)
    assert page.locator("#samples button[aria-pressed=true]").count() == 1


def test_an_image_is_pasted_and_dropped(page: Page) -> None:
    body = list(png(_SAMPLE))
    for event, target in (("paste", "document"), ("drop", "document.getElementById('drop')")):
        page.evaluate(
            f"""bytes => {{
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "{event}.png", {{type: "image/png"}}));
                const made = "{event}" === "paste"
                    ? new ClipboardEvent("paste", {{clipboardData: data, bubbles: true, cancelable: true}})
                    : new DragEvent("drop", {{dataTransfer: data, bubbles: true, cancelable: true}});
                {target}.dispatchEvent(made);
            }}""",
            body,
        )
        expect(page.get_by_role("article", name=f"{event}.png")).to_be_visible()


def test_what_is_wrong_is_said_in_the_services_own_words(page: Page) -> None:
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Choose an image first")
    page.set_input_files("#files", {"name": "no.png", "mimeType": "image/png", "buffer": b"not an image"})
    expect(page.get_by_role("alert")).to_contain_text("no.png")
    page.get_by_label("Which of these?").check()
    page.fill("#labels", "one")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("two labels or more")


def test_names_are_text(page: Page) -> None:
    """A class called like a piece of HTML is shown as it is called; `opened` fails on what it would run."""
    card = page.locator(".card", has_text="rogue")
    card.locator("summary").click()
    expect(card).to_contain_text(_ROGUE)
    assert page.locator("img[src=x]").count() == 0


def test_tasks_with_their_figures_and_the_versions(page: Page, store: Store) -> None:
    cards = page.locator("#gallery .card")
    expect(cards).to_have_count(4)
    expect(cards.first).to_contain_text("92.5 % of 40 test images right")
    page.fill("#filter", "circle")
    expect(cards).to_have_count(2)
    rows = page.locator("#history li")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("being served")
    expect(rows.last).to_contain_text("fuse colours, shapes, pair")


def test_the_keyboard_is_enough(page: Page) -> None:
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(at => at.id || at.name || at.tagName)(document.activeElement)"))
    assert {"files", "space", "abstain", "filter"} <= seen
    page.locator("#samples button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(1)


def test_every_control_has_a_name_for_screen_readers(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, img, a")]
            .filter(node => !(node.labels && node.labels.length) && !node.getAttribute("aria-label")
                && !node.textContent.trim() && !node.alt && !node.querySelector("img[alt]"))
            .map(node => node.outerHTML)"""
    )
    assert nameless == []


def test_a_service_that_asks_for_tokens_is_asked_with_one(browser: Browser, store: Store) -> None:
    token, record = new_token("page", "predict")
    add_token(store, record)
    with served(PlainService(store, auth="tokens")) as root, opened(browser, root, ready="#token-form") as page:
        page.fill("#token", "condu_0123456789abcdef_wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#token-form")).to_be_visible()
        page.fill("#token", token)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#gallery .card")).to_have_count(4)
        expect(page.locator("#token-form")).to_be_hidden()
        page.locator("#samples button").first.click()
        expect(page.locator(".answer")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, root: str, scheme: str) -> None:
    with opened(browser, root, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        _give(page, "circle")
        expect(page.locator(".answer")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128")
        assert dark == (scheme == "dark")


def test_a_new_version_appears_without_a_reload(browser: Browser, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    publish_tasks(store, {"colours": ("red", "green")}, evidence=True)
    with served(PlainService(store)) as root, opened(browser, root) as page:
        expect(page.locator("#gallery .card")).to_have_count(1)
        publish_tasks(store, {"shapes": ("circle", "square")}, evidence=True)
        expect(page.locator("#gallery .card")).to_have_count(2, timeout=30_000)
        expect(page.locator("#serving")).to_contain_text("version 2 · 2 tasks")
