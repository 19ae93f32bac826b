"""Prompts: texts that describe a class. Apart from the model, so that reading the data of a task needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.errors import LabelSpaceError

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def check_templates(templates: Sequence[str]) -> None:
    """Raises `LabelSpaceError` for a template that has other than one `{}`, or other braces."""
    for template in templates:
        if template.count("{}") != 1 or any(brace in template.replace("{}", "", 1) for brace in "{}"):
            raise LabelSpaceError(
                f"template {template!r} must have one '{{}}', where the class name goes, and no other braces"
            )


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, len(classes) * len(templates) texts: all of the first class, then the second, …"""
    return [template.replace("{}", name) for name in classes for template in templates]
