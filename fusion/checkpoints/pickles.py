"""PyTorch pickles, which are refused: reading one runs whatever program its author put into it."""

from __future__ import annotations

import shlex
from pathlib import Path

from fusion.errors import StateDictError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""Of a zip archive, which `torch.save` makes, and of a bare pickle."""
_CONVERT = (
    "import sys,torch;from safetensors.torch import save_file as s;"
    'd=torch.load(sys.argv[1],map_location="cpu",weights_only=True);d=d.get("state_dict",d);'
    "s({k:v.clone().contiguous() for k,v in d.items() if torch.is_tensor(v)},sys.argv[2])"
)


def is_pickle(path: Path) -> bool:
    """Whether a file that is no safetensors file begins like a pickle."""
    with path.open("rb") as file:
        return file.read(4).startswith(_BEGINNINGS)


def pickle_refused(path: Path) -> StateDictError:
    """The error for a pickle, with the command that converts it."""
    converted = path.with_suffix(".safetensors")
    if converted == path:
        converted = path.with_suffix(".converted.safetensors")
    command = shlex.join(["python", "-c", _CONVERT, str(path), str(converted)])
    return StateDictError(
        f"{path} is a PyTorch pickle, and condu reads safetensors only: a PyTorch pickle (.pt, .pth, .bin, .ckpt) must "
        "be converted first, because reading one can run a program. If you trust it, run this where torch is:\n"
        f"{command}"
    )
