"""The house: imports run one way, Ray stays where it is allowed, and nothing that is read is unpickled."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion.modes import modes

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fusion", "training", "serving", "cluster", "condu")
MAY_IMPORT = {
    "fusion": set(),
    "training": {"fusion"},
    "serving": {"fusion"},
    "cluster": {"fusion", "training", "serving"},
    "condu": {"fusion", "training", "serving", "cluster"},  # the front door: no package imports it
}
ROOMS = {
    "ground": ("errors", "backoff", "disk", "tensors", "planes", "memory", "actor_names", "options", "turns"),
    "store": ("store",),
    "versions": ("versions",),
    "elements": ("chunks", "kernels", "factors", "task_vectors"),
    "modes": ("modes", "archives"),
    "fuse": ("checkpoints", "fuse", "fusion_options", "decouple", "fidelity", "plausibility"),
    "answers": ("answers",),
    "roof": ("baselines", "actor"),
}
"""The rooms of `fusion`, from the ground up: a module may import its own room and those before it."""
RAY_IS_FOR = ("fusion/actor.py", "training/lanes/", "serving/", "cluster/")
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        ours = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
        assert ours - {package} <= MAY_IMPORT[package], path


def test_every_module_of_fusion_has_a_room() -> None:
    found = {path.relative_to(ROOT / "fusion").parts[0].removesuffix(".py") for path in (ROOT / "fusion").rglob("*.py")}
    assert found - {"__init__"} == {name for room in ROOMS.values() for name in room}


def test_the_rooms_of_fusion_import_only_those_below() -> None:
    floor = {name: height for height, room in enumerate(ROOMS.values()) for name in room}
    for path in sorted((ROOT / "fusion").rglob("*.py")):
        room = path.relative_to(ROOT / "fusion").parts[0].removesuffix(".py")
        for name in imports(path):
            if name.startswith("fusion."):
                assert floor[name.split(".")[1]] <= floor[room], f"{path} imports {name}"


def test_no_code_outside_the_modes_names_one() -> None:
    names = re.compile(rf"\b({'|'.join(modes())})\b")
    for path in modules():
        if path.parent != ROOT / "fusion" / "modes":
            assert not names.search(path.read_text()), path


def test_ray_is_imported_only_where_it_runs() -> None:
    for path in modules():
        if any(name.split(".")[0] == "ray" for name in imports(path)):
            assert str(path.relative_to(ROOT)).startswith(RAY_IS_FOR), path


def test_the_front_door_holds_only_re_exports() -> None:
    files = {path.name for path in (ROOT / "condu").iterdir() if path.is_file()}
    assert files == {"__init__.py", "py.typed"}
    body = ast.parse((ROOT / "condu/__init__.py").read_text()).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert functions == ["__getattr__", "__dir__"]
    rest = [node for node in body if not isinstance(node, ast.FunctionDef)]
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.If | ast.Assign | ast.Expr) for node in rest)
    (types,) = [node for node in rest if isinstance(node, ast.If)]
    assert ast.unparse(types.test) == "TYPE_CHECKING"


def test_nothing_that_is_read_is_unpickled() -> None:
    for path in modules():
        assert not {name.split(".")[0] for name in imports(path)} & UNPICKLERS, path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        assert not names & {"torch.load", "np.load", "numpy.load", "eval", "exec", "yaml.load"}, path


def imports_without(absent: str, *imported: str) -> None:
    """Import modules in a new process in which a package can't be imported."""
    code = f"import sys; sys.modules[{absent!r}] = None; import {', '.join(imported)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_the_maths_the_loop_and_the_predictor_run_without_ray() -> None:
    imports_without(
        "ray",
        *("fusion.answers.predictor", "fusion.fuse", "training.finetune", "training.evaluate"),
        *("training.data.task_data", "training.continual"),
    )


@pytest.mark.processes
def test_a_run_s_queue_ray_s_controller_and_status_need_no_torch() -> None:
    """It would cost each of their processes five seconds and 600 MB."""
    imports_without(
        "torch",
        *("training.lanes.task_queue", "training.lanes.lane_config", "training.lanes.status_query"),
        *("cluster.config", "cluster.session_query", "serving.status"),
    )
