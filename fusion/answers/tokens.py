"""What the text encoder gets to see of a text: texts that are cut, and texts that become the same tokens.

CLIP reads a fixed number of tokens (77 for most) and drops the rest; it folds case, spaces, Unicode forms and HTML
entities. Two labels that become the same tokens get exactly the same score, and which of them wins is chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fusion.answers.architecture import local_architecture
from fusion.answers.prompts import prompts

_LOOK_BEYOND = 8
"""How many times the context length is looked at to count the tokens of a text that is cut."""
_LONGEST = 3
"""Labels that are tried in a template before all are: if the longest fit, the others do."""
_SHOWN = 3
_SHOWN_CHARACTERS = 60


@lru_cache(maxsize=8)
def _open(text_cfg: str) -> Any:
    import open_clip

    with local_architecture(model_cfg={"text_cfg": json.loads(text_cfg)}) as name:
        return open_clip.get_tokenizer(name)


def _key(model_cfg: Mapping[str, Any]) -> str:
    """What a tokenizer depends on, to find it by."""
    return json.dumps(model_cfg["text_cfg"], sort_keys=True)


def tokenizer_of(model_cfg: Mapping[str, Any]) -> Any:
    """The tokenizer of an architecture, without its model."""
    return _open(_key(model_cfg))


class TextCheck:
    """What a tokenizer makes of the prompts of some labels.

    Attributes:
        cut: prompts that are cut, each with its number of tokens.
        limit: how many tokens are read.
        same: groups of labels that become the same tokens.
    """

    def __init__(self, tokenizer: Any, labels: Sequence[str], templates: Sequence[str]) -> None:
        self.limit = int(tokenizer.context_length)
        self._tokenizer = tokenizer
        bare = self._lengths([prompts([label], ["{}"])[0] for label in labels])
        longest = sorted(range(len(labels)), key=lambda index: -bare[index])[:_LONGEST]
        self.cut: dict[str, int] = {}
        for template in templates:
            found = self._cut([labels[index] for index in longest], template)
            self.cut |= self._cut(labels, template) if found else {}
        self.same = self._same(labels, templates)

    def warning(self) -> str | None:
        """The cut prompts in one sentence; None if there are none."""
        if not self.cut:
            return None
        texts = [f"{_short(text)!r} ({length} tokens)" for text, length in list(self.cut.items())[:_SHOWN]]
        more = f" and {len(self.cut) - _SHOWN} more" if len(self.cut) > _SHOWN else ""
        return f"the model reads {self.limit} tokens of a text and cuts {', '.join(texts)}{more}: shorten them"

    def problem(self) -> str | None:
        """The labels that no model can tell apart, in one sentence; None if there are none."""
        if not self.same:
            return None
        groups = " and ".join(", ".join(ascii(_short(label)) for label in group) for group in self.same[:_SHOWN])
        why = "once they are cut" if self.cut else "(case, spaces, Unicode form and HTML entities make no difference)"
        return f"the labels {groups} become the same tokens {why}: keep one of them, or name them differently"

    def _cut(self, labels: Sequence[str], template: str) -> dict[str, int]:
        texts = prompts(labels, [template])
        lengths = self._lengths(texts)
        return {text: length for text, length in zip(texts, lengths, strict=True) if length > self.limit}

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with those for start and end; those beyond `_LOOK_BEYOND` x the limit do not count."""
        rows = self._tokenizer(["", *texts], context_length=_LOOK_BEYOND * self.limit)
        padding = rows[0, -1]
        return [int((row != padding).nonzero().max()) + 1 for row in rows[1:]]

    def _same(self, labels: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
        groups: dict[Any, list[str]] = {(): list(labels)}
        for template in templates:
            finer: dict[Any, list[str]] = {}
            for key, group in groups.items():
                for label, row in zip(group, self._tokenizer(prompts(group, [template])).tolist(), strict=True):
                    finer.setdefault((key, tuple(row)), []).append(label)
            groups = {key: group for key, group in finer.items() if len(group) > 1}
        return list(groups.values())


def check_texts(model_cfg: Mapping[str, Any], labels: tuple[str, ...], templates: tuple[str, ...]) -> TextCheck:
    """A check that is kept: requests ask about the same labels again and again."""
    return _checked(_key(model_cfg), labels, templates)


@lru_cache(maxsize=256)
def _checked(text_cfg: str, labels: tuple[str, ...], templates: tuple[str, ...]) -> TextCheck:
    return TextCheck(_open(text_cfg), labels, templates)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
