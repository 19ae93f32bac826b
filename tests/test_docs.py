"""What the pages show works: docs/python.md runs as printed, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import condu
from fusion.answers.images import FORMATS
from training.data.listed import PATH_COLUMNS
from training.data.rows import IMAGE_COLUMNS, LABEL_COLUMNS
from training.data.splits import split_of

ROOT = Path(__file__).resolve().parents[1]
PYTHON_PAGE = ROOT / "docs" / "python.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "demo").glob("*.md"),
                *(ROOT / "demo" / "build").glob("*.md")])  # fmt: skip


def examples(page: Path) -> list[tuple[int, str]]:
    """The Python listings of a page, each with the number of its first line."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_example_of_the_python_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONDU_CACHE", str(tmp_path / "cache"))
    for folder in ("demo", "configs"):  # what the page takes from the repository
        (tmp_path / folder).symlink_to(ROOT / folder)
    listings = examples(PYTHON_PAGE)
    assert len(listings) > 15
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, listing in listings:
        exec(compile("\n" * (line - 1) + listing, str(PYTHON_PAGE), "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    (said,) = re.findall(r"^ *print\(error\)  # (.*)$", PYTHON_PAGE.read_text(), re.MULTILINE)
    assert said in printed


def test_the_python_page_names_everything_that_the_package_exports() -> None:
    page = PYTHON_PAGE.read_text()
    assert [name for name in condu.__all__ if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = page if not file else (page.parent / file).resolve()
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(other), f"{page.name} links to {target}"


def test_the_data_page_names_every_format_and_column_and_its_names_of_splits_are_understood() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert [name for name in FORMATS if name not in page] == []
    assert [name for name in (*IMAGE_COLUMNS, *LABEL_COLUMNS, *PATH_COLUMNS) if f"`{name}`" not in page] == []
    (paragraph,) = re.findall(r"^\*\*Splits\.\*\* (.*?)^Without", page, re.DOTALL | re.MULTILINE)
    assert [name for name in re.findall(r"`(\w+)`", paragraph) if split_of(name) is None] == []
