"""Experts as people have them: files, names and adapters of other tools, made into state dicts of the base's names."""

from fusion.checkpoints.expert import ExpertFile, open_expert

__all__ = ["ExpertFile", "open_expert"]
