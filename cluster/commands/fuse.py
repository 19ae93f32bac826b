"""`condu fuse` and `condu export`: from state dicts to a version and back. No CLIP and no Ray around them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cluster.output import console, human_bytes, print_json
from fusion.bases import Base, put_base
from fusion.cache import NodeCache
from fusion.errors import BaseMismatchError, ConfigError, StateDictError, UnknownVersionError
from fusion.fuse import ExpertToFuse, FuseResult, decoupled_tensors, fuse_experts, read_record
from fusion.manifest import Manifest
from fusion.store import Store, open_store
from fusion.tensors import TensorSpec, TensorWriter, is_fused, sha256_file
from fusion.versions import Versions

StoreOption = Annotated[
    str, typer.Option("--store", help="file:///folder, a path, or s3://bucket/prefix", metavar="URL")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def fuse(
    store: StoreOption,
    expert: Annotated[
        list[str], typer.Option("--expert", help="A task's expert; repeat it, in fusing order.", metavar="NAME=FILE")
    ],
    base: Annotated[
        Path | None,
        typer.Option("--base", help="theta_0, safetensors. Needed for the first version only.", metavar="FILE"),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="iterative, joint or signed. Default: the store's, else signed.")
    ] = None,
    bits: Annotated[int | None, typer.Option(min=1, max=4, help="Bits a parameter and task, signed only.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Allow another expert under a name that is taken.")
    ] = False,
    each: Annotated[
        bool, typer.Option("--each", help="Publish one version per expert instead of one per call.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fuse experts into the store and publish a version. Any safetensors state dicts of floats will do."""
    target = open_store(store)
    parent = Versions(target).newest()
    experts = [_parse_expert(value) for value in expert]
    theta_0 = _the_base(target, base, parent)
    settings = _mode(mode, bits, parent)
    groups = [[one] for one in experts] if each else [experts]
    cache = NodeCache(target)
    results = [
        fuse_experts(cache, theta_0, group, mode=settings, replace=replace, created={"config": None})
        for group in groups
    ]
    if as_json:
        print_json([_summary(cache, result) for result in results])
        return
    for result in results:
        for task in result.unchanged:
            console.print(f"{task}: this very expert is fused already, nothing to do")
        if result.fused:
            mode_name = result.manifest.mode["name"]
            fused = ", ".join(result.fused)
            console.print(f"version [bold]{result.manifest.version}[/] in {target.url}: fused {fused} ({mode_name})")


def export(
    store: StoreOption,
    task: Annotated[str, typer.Option("--task", help="Whose expert to rebuild.")],
    out: Annotated[Path, typer.Argument(help="Where to write the state dict.", metavar="OUT.safetensors")],
    version: Annotated[int | None, typer.Option(help="Default: the newest.")] = None,
    base: Annotated[Path | None, typer.Option("--base", help="Refuse unless the store's base is this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a decoupled expert as a full state dict, theta_0 + delta_hat, that plain open_clip loads."""
    source = open_store(store)
    manifest = read_version(source, version)
    if base is not None and _sha256(base) != manifest.base.sha256:
        raise BaseMismatchError(f"{base} is not the base of {source.url} ({manifest.base.sha256[:12]}…)")
    cache = NodeCache(source)
    read_record(cache, manifest, task)  # an unknown task is refused before anything is written
    layout = {
        name: TensorSpec("F32", spec.shape) if is_fused(name, spec) else spec
        for name, spec in cache.tensors(manifest.base.weights).specs.items()
    }
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: name the file to write, such as {out / task}.safetensors")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise ConfigError(f"{out} can't be written: {error.strerror}") from error
    os.close(handle)
    writer = TensorWriter(Path(name), layout)
    try:
        for tensor_name, tensor in decoupled_tensors(cache, manifest, task):
            writer.write(tensor_name, tensor)
    except BaseException:
        writer.abandon()
        raise
    writer.finish()
    os.replace(name, out)
    num_bytes = out.stat().st_size
    if as_json:
        print_json({"task": task, "version": manifest.version, "file": str(out), "bytes": num_bytes})
    else:
        console.print(f"{out}: task {task} of version {manifest.version}, {human_bytes(num_bytes)}")


def read_version(store: Store, number: int | None) -> Manifest:
    """A version by number, or the newest. Raises `UnknownVersionError`."""
    versions = Versions(store)
    if number is not None:
        return versions.read(number)
    manifest = versions.newest()
    if manifest is None:
        raise UnknownVersionError(
            f"nothing was published in {store.url} yet: `condu run CONFIG` or `condu fuse` makes a version"
        )
    return manifest


def _parse_expert(value: str) -> ExpertToFuse:
    name, separator, file = value.partition("=")
    if not separator or not file:
        raise ConfigError(f"--expert {value!r}: write NAME=FILE, such as --expert pets=pets.safetensors")
    return ExpertToFuse(name, Path(file))


def _the_base(store: Store, base: Path | None, parent: Manifest | None) -> Base:
    if base is None:
        if parent is None:
            raise ConfigError(f"{store.url} has no version yet: name theta_0 with --base FILE")
        return parent.base
    sha256 = _sha256(base)
    if parent is not None and parent.base.sha256 != sha256:
        raise BaseMismatchError(
            f"{base} is not the base of {store.url} ({parent.base.sha256[:12]}…): one store has one base; leave --base "
            "out to take the store's, or use another store"
        )
    return parent.base if parent else put_base(store, base)


def _mode(mode: str | None, bits: int | None, parent: Manifest | None) -> dict[str, object]:
    if mode is None and bits is None and parent is not None:
        return dict(parent.mode)
    name = mode or (str(parent.mode["name"]) if parent else "signed")
    if name != "signed":
        if bits is not None:
            raise ConfigError(f"--bits {bits} has no effect in mode {name}: only signed has more than one bit")
        return {"name": name}
    return {"name": name, "bits": bits or (parent.mode.get("bits", 2) if parent else 2)}


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise StateDictError(f"{path}: no such file")
    return sha256_file(path)


def _summary(cache: NodeCache, result: FuseResult) -> dict[str, object]:
    manifest = result.manifest
    return {
        "version": manifest.version,
        "mode": dict(manifest.mode),
        "fused": list(result.fused),
        "unchanged": list(result.unchanged),
        "tasks": {
            task: {
                "session": entry.session,
                "scale": entry.scale,
                "trigger_bytes": read_record(cache, manifest, task).trigger.bytes,
            }
            for task, entry in manifest.state.tasks.items()
        },
    }
