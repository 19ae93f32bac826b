"""Which labels of a caller are classes that a task was taught: by their text, or by an alias that the task lists."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache


def meanings(classes: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Every text that means a class of a task, folded, and the class.

    A class's own name comes before an alias of another class; of classes that look alike, the first counts.
    """
    found: dict[str, str] = {}
    for name in classes:
        found.setdefault(_folded(name), name)
    for name, others in aliases.items():
        for other in others:
            found.setdefault(_folded(other), name)
    return found


def matched_classes(labels: Sequence[str], taught: Mapping[str, str]) -> dict[int, str]:
    """Index of a label to the class that it means, in the order of the labels; `taught` is what `meanings` gave.

    Texts are compared stripped, case-folded and Unicode-normalised (NFKC).
    """
    found = ((i, taught.get(_folded(label))) for i, label in enumerate(labels))
    return {i: name for i, name in found if name is not None}


def alias_problems(classes: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with a task's aliases: each has to mean one class."""
    problems = [f"aliases are given for {name!r}, which is no class" for name in aliases if name not in classes]
    owner = {_folded(name): name for name in classes}
    for name, others in aliases.items():
        for other in others:
            if not other.strip():
                problems.append(f"an alias of {name!r} is empty")
            elif (taken := owner.setdefault(_folded(other), name)) != name:
                problems.append(f"alias {other!r} of {name!r} also means {taken!r}")
    return problems


@lru_cache(maxsize=1 << 14)  # a request's labels are compared with every task's
def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text.strip()).casefold()
