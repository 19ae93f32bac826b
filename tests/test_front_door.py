"""The front door: `import condu` costs nothing, exports what it lists, and its types are those of the real things."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import condu
import fusion.errors

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "ray", "open_clip", "boto3")


def imported_after(code: str) -> set[str]:
    """Top-level modules of a fresh interpreter that ran `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def type_imports() -> dict[str, str]:
    """What type checkers are told: each name and the module that it is imported from."""
    tree = ast.parse(Path(str(condu.__file__)).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


@pytest.mark.processes
def test_importing_it_imports_nothing_else() -> None:
    others = {"numpy", "fusion", "training", "serving", "cluster", "pydantic", "typer", *HEAVY}
    assert not imported_after("import condu; dir(condu)") & others


@pytest.mark.processes
@pytest.mark.parametrize(
    "name",
    ["open_store", "NodeCache", "StoreAddress", "put_base", "fuse_experts", "DecoupledExpert", "Versions", "rollback",
     "collect", "verify", "ConduError", "Client", "AsyncClient", "__version__"],
)  # fmt: skip
def test_a_program_that_uses_no_model_never_waits_for_torch_or_ray(name: str) -> None:
    assert not imported_after(f"import condu; condu.{name}") & set(HEAVY)


def test_every_name_is_the_thing_itself() -> None:
    for name, module in type_imports().items():
        assert getattr(condu, name) is getattr(importlib.import_module(module), name), name


def test_what_it_exports_is_what_type_checkers_see() -> None:
    assert sorted(condu.__all__) == sorted(["__version__", *type_imports()])
    assert set(condu.__all__) <= set(dir(condu))


def test_every_error_of_the_packages_can_be_imported_from_condu() -> None:
    errors = {name for name, _ in inspect.getmembers(fusion.errors, inspect.isclass)}
    assert errors <= set(condu.__all__)


@pytest.mark.processes
def test_the_command_and_the_package_report_the_same_version() -> None:
    command = [sys.executable, "-m", "cluster.cli", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"condu {condu.__version__}\n")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="fuse_expert"):
        condu.fuse_expert  # noqa: B018
