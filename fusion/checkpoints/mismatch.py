"""Why a file's tensors can't be the base's, told from both sides: names without a counterpart, and what differs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fusion.errors import StateDictError

_FEW = 8
"""So many differences are listed one by one."""
_SHOWN = 3
_BLOCK = re.compile(r"(.*)resblocks\.(\d+)\.")


def mismatch(
    label: str, base: str, *, strangers: Mapping[str, str], missing: Sequence[str], others: Sequence[str], placed: int
) -> StateDictError:
    """The error for a file that does not fit.

    Args:
        label, base: the two files.
        strangers: names of the file that the base has no place for, each with the name it would have there.
        missing: the base's names that the file does not fill.
        others: sentences on tensors that both have, in another shape or dtype.
        placed: how many tensors of the file have a place.
    """
    problems = [f"{name} is missing" for name in missing] + [f"{name} is not in the base" for name in strangers]
    problems += others
    if len(problems) <= _FEW or (not strangers and not missing):
        more = f"; and {len(problems) - _FEW} more" if len(problems) > _FEW else ""
        said = "; ".join(problems[:_FEW]) + more
    else:
        total = placed + len(strangers)
        said = f"your file: {_some(strangers)}, the base: {_some(missing)} "
        said += f"({placed} of the file's {total} tensors have a place, {len(missing)} of the base's are not filled)"
        said += "".join(f". {line}" for line in [*_in_front(strangers, missing), *_depths(strangers, missing)])
        said += "".join(f". {line}" for line in others[:_SHOWN])
    return StateDictError(
        f"{label} does not match the base {base}: {said}. Give the base that it was fine-tuned from, or a state dict "
        "or adapter under names that condu knows (docs/experts.md)"
    )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return (", ".join(names[:_SHOWN]) or "nothing") + (", …" if len(names) > _SHOWN else "")


def _in_front(strangers: Iterable[str], missing: Sequence[str]) -> list[str]:
    """What most names of the file have in front in place of what the base has, where the rest is the same."""
    ends = {end: name for name in reversed(missing) for end in _ends(name)}
    fronts: Counter[tuple[str, str]] = Counter()
    for name in strangers:
        for end in _ends(name):
            if end in ends and ("." in end or end == ends[end]):
                fronts[name.removesuffix(end), ends[end].removesuffix(end)] += 1
                break
    if not fronts:
        return ["No name of the one ends like a name of the other: another architecture, or another library's names"]
    (own, theirs), count = fronts.most_common(1)[0]
    return [f"{count} names begin with {own!r} where the base's begin with {theirs!r}"] if count > 1 else []


def _ends(name: str) -> list[str]:
    """The name, and what is left of it after each dot: the longest first."""
    segments = name.split(".")
    return [".".join(segments[at:]) for at in range(len(segments))]


def _depths(strangers: Mapping[str, str], missing: Sequence[str]) -> list[str]:
    """Encoders with more or fewer blocks than the base's."""
    more, fewer = _blocks(strangers.values()), _blocks(missing)
    return [
        f"Your file has {'more' if found is more else 'fewer'} blocks in {tower}resblocks than the base"
        for found, other in ((more, fewer), (fewer, more))
        for tower in found
        if tower not in other and 0 not in found[tower]
    ]


def _blocks(names: Iterable[str]) -> dict[str, set[int]]:
    """Numbers of the blocks among names, by encoder."""
    found: dict[str, set[int]] = {}
    for name in names:
        if match := _BLOCK.match(name):
            found.setdefault(match[1], set()).add(int(match[2]))
    return found
