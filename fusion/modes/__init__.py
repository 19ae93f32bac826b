"""How experts become triggers, and what the triggers share: one small interface, one file per mode."""

from fusion.modes.mode import Decoder, Mode, PartsDecoder
from fusion.modes.registry import DEFAULT_MODE, in_words, mode_class, modes, modes_with, open_mode, register
from fusion.modes.workbench import NewExpert, Workbench

__all__ = [
    "DEFAULT_MODE",
    "Decoder",
    "Mode",
    "NewExpert",
    "PartsDecoder",
    "Workbench",
    "in_words",
    "mode_class",
    "modes",
    "modes_with",
    "open_mode",
    "register",
]
