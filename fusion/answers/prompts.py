"""Prompts: texts that describe a class. Apart from the model, so that reading the data of a task needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, len(classes) * len(templates) texts: all of the first class, then the second, …"""
    return [template.replace("{}", name) for name in classes for template in templates]
