"""Names of splits, as people write them: `train`, `Training`, `TEST`, `val`, `valid`, `validation`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from fusion.errors import DataError

Part = TypeVar("Part")

_NAMES = {
    "train": ("train", "training", "train_data", "train_set", "trainset"),
    "test": ("test", "testing", "test_data", "test_set", "testset", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}


def split_of(name: str) -> str | None:
    """`train`, `test` or `validation` if a name means one of them, whatever its case."""
    folded = name.casefold().replace("-", "_").replace(" ", "_")
    return next((split for split, known in _NAMES.items() if folded in known), None)


@dataclass(frozen=True)
class Splits(Generic[Part]):
    """The parts that are used, and how they came to be."""

    train: Part | None
    test: Part | None
    validation: Part | None
    notes: tuple[str, ...]


def choose(root: str, parts: Mapping[str, Part], *, what: str, validation: bool = False) -> Splits[Part]:
    """Which parts of a data set train, which test, and which say when training stops.

    Args:
        parts: by the name that the source gives them, such as `Training`; every name means a split.
        what: how messages write such a name, with `{}` in its place, such as `{}/`.
        validation: whether a validation split beside a test split is wanted.
    Raises:
        DataError: two names mean one split, or there is nothing to test on.
    """
    found: dict[str, str] = {}
    for name in parts:
        split = split_of(name)
        assert split is not None, f"{name} means no split"
        if split in found:
            raise DataError(
                f"{root}: {what.format(found[split])} and {what.format(name)} both read as the {split} split: keep one"
            )
        found[split] = name
    notes = []
    test = found.get("test", found.get("validation"))
    if "test" in found and "validation" in found and validation:
        notes.append(f"{what.format(found['validation'])} says when training stops")
    elif "test" in found and "validation" in found:
        notes.append(f"{what.format(found['validation'])} is left out: {what.format(found['test'])} is the test split")
    elif "validation" in found:
        notes.append(f"{what.format(found['validation'])} is the test split")
    unusual = [name for split, name in found.items() if split != "validation" and name != split]
    if unusual:
        read = (f"{what.format(name)} is the {split_of(name)} split" for name in unusual)
        notes.append(", ".join(read))
    train = found.get("train")
    if train is not None and test is None:
        raise DataError(_without_test(root, what.format(train)))
    other = found.get("validation") if validation and "test" in found else None
    first, second, third = (None if name is None else parts[name] for name in (train, test, other))
    return Splits(first, second, third, tuple(notes))


def _without_test(root: str, train: str) -> str:
    return (
        f"{root} has {train} but no test split (test, val, valid or validation): add one, or move what is in "
        f"{train} up into {root} for an 80/20 split"
    )


def all_splits(names: Iterable[str]) -> bool:
    """Whether every name means a split."""
    return all(split_of(name) is not None for name in names)
