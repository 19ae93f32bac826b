"""`condu fuse` and `condu export`: from state dicts to a version and back, without CLIP or Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from cluster.commands.options import JsonOption, StoreOption
from cluster.output import console, errors, human_bytes, print_json
from cluster.report.fidelity import fidelity_table, write_fidelity
from fusion.checkpoints import open_expert
from fusion.decouple import DecoupledExpert, read_record
from fusion.disk import replacing
from fusion.errors import BaseMismatchError, ConfigError, StateDictError
from fusion.fidelity import FidelityReport, measure_fidelity
from fusion.fuse import ExpertToFuse, FuseResult, fuse_experts, rebuild_from_archive
from fusion.kernels import StateDtype
from fusion.modes import DEFAULT_MODE, mode_class, modes, modes_with, open_mode
from fusion.plausibility import change_of
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, sha256_file
from fusion.versions.bases import put_base
from fusion.versions.history import Versions, nothing_published
from fusion.versions.manifest import Manifest

_ExpertOption = Annotated[
    list[str] | None,
    typer.Option(
        "--expert",
        help="A task's expert: safetensors, the index of shards, or a folder with these or a LoRA adapter. Repeat the "
        "option for more, in fusing order.",
        metavar="NAME=FILE",
    ),
]
_BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base", help="The base, theta_0, as safetensors. Only needed for the first version.", metavar="FILE"
    ),
]
_ModeOption = Annotated[
    str | None, typer.Option(help=f"{', '.join(modes())}. Default: the store's, else {DEFAULT_MODE}.", metavar="NAME")
]
_ArchiveOption = Annotated[
    str | None, typer.Option(help="Keep the original task vectors: float32 (the expert's file), float16 or bfloat16.")
]
_FromArchiveOption = Annotated[
    bool, typer.Option("--from-archive", help="Rebuild from all archived experts, in --mode or in the store's mode.")
]
_ReplaceOption = Annotated[bool, typer.Option("--replace", help="Allow another expert under a name that is taken.")]
_EachOption = Annotated[bool, typer.Option("--each", help="Publish one version per expert instead of one per call.")]
_ReportOption = Annotated[
    Path | None,
    typer.Option(help="Measure fidelity; write it as JSON, and one picture per version beside it.", metavar="FILE"),
]
_StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse experts that are equal to the base or look unrelated to it.")
]
_DeviceOption = Annotated[str, typer.Option(help="Where the arithmetic is done: cpu, cuda, cuda:1 …")]


def fuse(
    store: StoreOption,
    expert: _ExpertOption = None,
    base: _BaseOption = None,
    mode: _ModeOption = None,
    archive: _ArchiveOption = None,
    from_archive: _FromArchiveOption = False,
    replace: _ReplaceOption = False,
    each: _EachOption = False,
    report: _ReportOption = None,
    strict: _StrictOption = False,
    device: _DeviceOption = "cpu",
    as_json: JsonOption = False,
    *,
    mode_options: dict[str, Any],
) -> None:
    """Fuse experts into the store and publish a version. Hugging Face's names and LoRA adapters will do, too.

    docs/experts.md lists what is understood. Of other models than CLIP, state dicts with the base's own names will do.
    """
    target = open_store(store)
    parent = Versions(target).newest()
    experts = [_parse_expert(value) for value in expert or []]
    settings = _mode(parent, mode, mode_options)
    cache = NodeCache(target)
    if from_archive:
        if experts or replace or each or archive or base or strict:
            raise ConfigError("--from-archive rebuilds what the store has: combine it with --mode and its options, "
                              "not with --expert, --base, --archive, --replace, --each or --strict")  # fmt: skip
        results = [rebuild_from_archive(cache, mode=settings, device=device)]
        reports = _measure(cache, results, []) if report is not None else []
    else:
        if not experts:
            raise ConfigError("there is no expert to fuse: name each with --expert NAME=FILE")
        _check_base(target, base, parent)
        options: dict[str, Any] = {
            "archive": archive is not None,
            "archive_dtype": _archive_dtype(archive),
            "replace": replace,
        }
        theta_0 = TensorFile(base) if base is not None else cache.tensors(cast(Manifest, parent).base.weights)
        with ExitStack() as opened:
            experts = [open_given(opened, one, theta_0, target) for one in experts]
            check_plausible(theta_0, experts, strict=strict)
            kept = parent.base if parent else put_base(target, cast(Path, base))
            results = [
                fuse_experts(cache, kept, group, mode=settings, created={"config": None}, device=device, **options)
                for group in ([[one] for one in experts] if each else [experts])
            ]
            reports = _measure(cache, results, experts) if report is not None else []
    if report is not None:
        write_fidelity(reports, report)
    if as_json:
        print_json([_summary(cache, result) for result in results])
    else:
        _tell(target, results, reports)


def _tell(store: Store, results: Sequence[FuseResult], reports: Sequence[FidelityReport]) -> None:
    for result in results:
        for task in result.unchanged:
            console.print(f"{task}: this expert is already fused, nothing to do")
        if result.fused:
            mode_name = result.manifest.mode["name"]
            fused = ", ".join(result.fused)
            console.print(
                f"version [bold]{result.manifest.version}[/] in {store.url}: fused {fused} ({mode_name})",
                soft_wrap=True,
            )
    for found in reports:
        console.print(fidelity_table(found))


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
    expert = DecoupledExpert(NodeCache(source), manifest, task)  # an unknown task is refused before anything is written
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: name the file to write, such as {out / task}.safetensors")
    try:
        with replacing(out, private=True) as temporary:
            expert.write(temporary)
    except OSError as error:
        raise ConfigError(f"{out} can't be written: {error.strerror}") from error
    num_bytes = out.stat().st_size
    if as_json:
        print_json({"task": task, "version": manifest.version, "file": str(out), "bytes": num_bytes})
    else:
        console.print(f"{out}: task {task} of version {manifest.version}, {human_bytes(num_bytes)}", soft_wrap=True)


def read_version(store: Store, number: int | None) -> Manifest:
    """A version by number, or the newest. Raises `UnknownVersionError`."""
    versions = Versions(store)
    if number is not None:
        return versions.read(number)
    manifest = versions.newest()
    if manifest is None:
        raise nothing_published(store)
    return manifest


def _parse_expert(value: str) -> ExpertToFuse:
    name, separator, file = value.partition("=")
    if not separator or not file:
        raise ConfigError(f"--expert {value!r}: write NAME=FILE, such as --expert pets=pets.safetensors")
    return ExpertToFuse(name, Path(file))


def _check_base(store: Store, base: Path | None, parent: Manifest | None) -> None:
    if base is None:
        if parent is None:
            raise ConfigError(f"{store.url} has no version yet: name theta_0 with --base FILE")
        return
    sha256 = _sha256(base)
    if parent is not None and parent.base.sha256 != sha256:
        raise BaseMismatchError(
            f"{base} is not the base of {store.url} ({parent.base.sha256[:12]}…): one store has one base; leave --base "
            "out to use the store's, or use another store"
        )


def open_given(opened: ExitStack, expert: ExpertToFuse, base: TensorFile, store: Store) -> ExpertToFuse:
    """The expert of a file, under the base's names until `opened` is closed; what was renamed is told.

    Raises `StateDictError`.
    """
    found = opened.enter_context(open_expert(cast(Path, expert.weights), base, store))
    if found.note is not None:
        errors.print(f"{expert.task}: read {found.label} as {found.note}", markup=False, soft_wrap=True)
    return dataclasses.replace(expert, weights=found.path, label=found.label)


def check_plausible(base: TensorFile, experts: Sequence[ExpertToFuse], *, strict: bool) -> None:
    """Warn of experts that don't look like fine-tunings of the base; with `strict` refuse them, before anything is
    stored. Raises `StateDictError`."""
    files = [TensorFile(one.weights, label=one.label) for one in experts if isinstance(one.weights, Path)]
    doubts = [doubt for file in files if (doubt := change_of(base, file).doubt(file.label))]
    if doubts and strict:
        raise StateDictError("; ".join(doubts) + " (leave --strict out to fuse all the same)")
    for doubt in doubts:
        errors.print(f"warning: {doubt}", markup=False, soft_wrap=True)


def _mode(parent: Manifest | None, name: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The mode's settings: as chosen, else the store's. Raises `ConfigError` for an option that the mode lacks."""
    name = name or (parent.mode["name"] if parent else DEFAULT_MODE)
    for option, value in options.items():
        if name not in (owners := modes_with(option)):
            mode_class(name)  # an unknown mode is reported first
            raise ConfigError(f"--{option} {value} has no effect in mode {name}: it belongs to {' and '.join(owners)}")
    kept = {key: value for key, value in parent.mode.items() if key != "name"} if parent else {}
    inherited = kept if parent and parent.mode["name"] == name else {}
    return open_mode({"name": name, **inherited, **options}).settings()


def _archive_dtype(value: str | None) -> StateDtype:
    if value is None:
        return "float32"
    if value not in get_args(StateDtype):
        raise ConfigError(f"--archive {value!r} is unknown: choose float32, float16 or bfloat16")
    return cast(StateDtype, value)


def _measure(cache: NodeCache, results: Sequence[FuseResult], experts: Sequence[ExpertToFuse]) -> list[FidelityReport]:
    files = {one.task: TensorFile(one.weights, label=one.label) for one in experts if isinstance(one.weights, Path)}
    return [
        measure_fidelity(
            cache,
            result.manifest,
            result.cost,
            experts={task: file for task, file in files.items() if task in result.manifest.state.tasks},
        )
        for result in results
    ]


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
                "trigger_bytes": open_mode(manifest.mode).task_bytes(read_record(cache, manifest, task)),
            }
            for task, entry in manifest.state.tasks.items()
        },
        "seconds": result.cost.seconds,
        "peak_bytes": result.cost.peak_bytes,
        "written_bytes": sum(ref.bytes for ref in result.cost.written),
    }
