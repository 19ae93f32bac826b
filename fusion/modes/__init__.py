"""How experts become triggers, and what the triggers share: one small interface, one file per mode."""

from fusion.modes.mode import ComponentParts, Decoder, Mode, PartsDecoder, RowParts, TellingDecoder
from fusion.modes.registry import DEFAULT_MODE, in_words, mode_class, modes, modes_with, open_mode, register
from fusion.modes.workbench import NewExpert, Workbench

__all__ = [
    "DEFAULT_MODE",
    "ComponentParts",
    "Decoder",
    "Mode",
    "NewExpert",
    "PartsDecoder",
    "RowParts",
    "TellingDecoder",
    "Workbench",
    "in_words",
    "mode_class",
    "modes",
    "modes_with",
    "open_mode",
    "register",
]
