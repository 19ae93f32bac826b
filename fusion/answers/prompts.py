"""Prompts: texts that describe a class. Apart from the model, so that reading the data of a task needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.errors import LabelSpaceError

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def template_problem(template: str) -> str | None:
    """What is wrong with a template, to follow its name in a sentence; None for one that can be filled in."""
    if template.count("{}") == 1 and not any(brace in template.replace("{}", "", 1) for brace in "{}"):
        return None
    return "must have one '{}', where the class name goes, and no other braces"


def check_templates(templates: Sequence[str]) -> None:
    """Raises `LabelSpaceError` for a template that can't be filled in."""
    for template in templates:
        if problem := template_problem(template):
            raise LabelSpaceError(f"template {template!r} {problem}")


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, len(classes) * len(templates) texts: all of the first class, then the second, …"""
    return [template.replace("{}", name) for name in classes for template in templates]
