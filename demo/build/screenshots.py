"""The README's pictures of the page: the demo's service in a real browser, asked the way a visitor would.

make demo && make screenshots
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import yaml
from playwright.sync_api import Browser, Page, sync_playwright

from cluster.demo_service import free_port

_ROOT = Path(__file__).parents[2]
_CONFIG = _ROOT / "demo-output" / "condu.yaml"
_STARTED_S = 180
_SIZE = {"width": 1180, "height": 760}


def main() -> None:
    if not _CONFIG.exists():
        raise SystemExit("demo-output/ has no store to show: run `make demo` first")
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("chromium is not installed: as root, apt-get install chromium")
    port = free_port()
    values = yaml.safe_load(_CONFIG.read_text())
    config = _CONFIG.with_name("screenshots.yaml")
    config.write_text(yaml.safe_dump({**values, "serve": {**values.get("serve", {}), "port": port}}))
    service = subprocess.Popen([Path(sys.executable).parent / "condu", "serve", config])
    try:
        root = f"http://127.0.0.1:{port}/"
        _wait(root, service)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            _take(browser, root, "page", "light", _ask_openly)
            _take(browser, root, "page-labels", "dark", _ask_with_labels)
            browser.close()
    finally:
        service.terminate()
        service.wait()
        config.unlink()


def _wait(root: str, service: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STARTED_S
    while time.monotonic() < until and service.poll() is None:
        try:
            if httpx.get(f"{root}readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("the service did not start")


def _take(browser: Browser, root: str, name: str, scheme: str, ask: Callable[[Page], None]) -> None:
    with browser.new_context(viewport=_SIZE, color_scheme=scheme, device_scale_factor=1.5) as context:
        page = context.new_page()
        page.goto(root)
        page.wait_for_selector("#samples button")
        ask(page)
        page.wait_for_selector(".answer")
        page.wait_for_timeout(500)  # bars grow
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=_ROOT / "docs" / f"{name}.png")
        print(f"docs/{name}.png")


def _ask_openly(page: Page) -> None:
    page.get_by_title("weather").first.click()


def _ask_with_labels(page: Page) -> None:
    page.get_by_label("Which of these?").check()
    page.fill("#labels", "umbrella\nrainbow\na jellyfish\na mushroom")
    page.get_by_title("weather").first.click()


if __name__ == "__main__":
    main()
