"""Options that several commands have. Apart from them, so that a command imports no other's machinery."""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[
    str, typer.Option("--store", help="file:///folder, a path, or s3://bucket/prefix", metavar="URL")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
