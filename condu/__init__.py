"""The front door: what a program needs to keep, fuse, edit and ask a store. See docs/python.md.

Re-exports, no logic, and nothing in the other packages imports it. A name is imported from its module when it is first
used, so `import condu` costs nothing, and a program that only fuses never waits for torch or Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.config import Config, load_config
    from fusion.answers.clip import Clip, build_clip, describe_architecture
    from fusion.answers.label_spaces import Prediction, Query
    from fusion.answers.predictor import Predictor
    from fusion.answers.prototypes import class_prototypes
    from fusion.answers.view import TaskView, View
    from fusion.checkpoints.expert import ExpertFile, open_expert
    from fusion.decouple import DecoupledExpert, read_record
    from fusion.errors import (
        BaseMismatchError,
        BlobNotFoundError,
        ConduError,
        ConfigError,
        DamagedBlobError,
        DataError,
        DiskError,
        FormatError,
        ImageError,
        LabelSpaceError,
        StateDictError,
        StoreAccessError,
        StoreError,
        StoreUnavailableError,
        StoreUrlError,
        TaskNameError,
        UnknownTaskError,
        UnknownVersionError,
        VersionGoneError,
    )
    from fusion.fidelity import FidelityReport, TaskFidelity, measure_fidelity
    from fusion.fuse import ExpertToFuse, FuseCost, FuseResult, fuse_experts, rebuild_from_archive
    from fusion.store import ObjectInfo, S3Options, Store, open_store
    from fusion.store.address import StoreAddress
    from fusion.store.blobs import BlobRef
    from fusion.store.node_cache import NodeCache
    from fusion.versions.bases import Base, get_base, put_base
    from fusion.versions.edits import Edit, pin, remove_task, rollback, unpin
    from fusion.versions.experts import ExpertRecord, put_expert_file
    from fusion.versions.gc import Collection, Policy, collect
    from fusion.versions.history import Versions
    from fusion.versions.manifest import Manifest
    from fusion.versions.state import FusedState, TaskEntry, TaskRecord
    from fusion.versions.verify import Finding, Verification, verify
    from serving.client import Answer, AsyncClient, Client, Embeddings, NamedImage, ServiceError
    from training.data.task_data import TaskData, load_task_data
    from training.imported import import_expert

    __version__: str

_HOMES = {
    "cluster.config": ("Config", "load_config"),
    "fusion.answers.clip": ("Clip", "build_clip", "describe_architecture"),
    "fusion.answers.label_spaces": ("Prediction", "Query"),
    "fusion.answers.predictor": ("Predictor",),
    "fusion.answers.prototypes": ("class_prototypes",),
    "fusion.answers.view": ("TaskView", "View"),
    "fusion.checkpoints.expert": ("ExpertFile", "open_expert"),
    "fusion.decouple": ("DecoupledExpert", "read_record"),
    "fusion.errors": (
        "BaseMismatchError",
        "BlobNotFoundError",
        "ConduError",
        "ConfigError",
        "DamagedBlobError",
        "DataError",
        "DiskError",
        "FormatError",
        "ImageError",
        "LabelSpaceError",
        "StateDictError",
        "StoreAccessError",
        "StoreError",
        "StoreUnavailableError",
        "StoreUrlError",
        "TaskNameError",
        "UnknownTaskError",
        "UnknownVersionError",
        "VersionGoneError",
    ),
    "fusion.fidelity": ("FidelityReport", "TaskFidelity", "measure_fidelity"),
    "fusion.fuse": ("ExpertToFuse", "FuseCost", "FuseResult", "fuse_experts", "rebuild_from_archive"),
    "fusion.store": ("ObjectInfo", "S3Options", "Store", "open_store"),
    "fusion.store.address": ("StoreAddress",),
    "fusion.store.blobs": ("BlobRef",),
    "fusion.store.node_cache": ("NodeCache",),
    "fusion.versions.bases": ("Base", "get_base", "put_base"),
    "fusion.versions.edits": ("Edit", "pin", "remove_task", "rollback", "unpin"),
    "fusion.versions.experts": ("ExpertRecord", "put_expert_file"),
    "fusion.versions.gc": ("Collection", "Policy", "collect"),
    "fusion.versions.history": ("Versions",),
    "fusion.versions.manifest": ("Manifest",),
    "fusion.versions.state": ("FusedState", "TaskEntry", "TaskRecord"),
    "fusion.versions.verify": ("Finding", "Verification", "verify"),
    "serving.client": ("Answer", "AsyncClient", "Client", "Embeddings", "NamedImage", "ServiceError"),
    "training.data.task_data": ("TaskData", "load_task_data"),
    "training.imported": ("import_expert",),
}
"""Where each name lives, as in the imports above, which only type checkers read."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "AsyncClient",
    "Base",
    "BaseMismatchError",
    "BlobNotFoundError",
    "BlobRef",
    "Client",
    "Clip",
    "Collection",
    "ConduError",
    "Config",
    "ConfigError",
    "DamagedBlobError",
    "DataError",
    "DecoupledExpert",
    "DiskError",
    "Edit",
    "Embeddings",
    "ExpertFile",
    "ExpertRecord",
    "ExpertToFuse",
    "FidelityReport",
    "Finding",
    "FormatError",
    "FuseCost",
    "FuseResult",
    "FusedState",
    "ImageError",
    "LabelSpaceError",
    "Manifest",
    "NamedImage",
    "NodeCache",
    "ObjectInfo",
    "Policy",
    "Prediction",
    "Predictor",
    "Query",
    "S3Options",
    "ServiceError",
    "StateDictError",
    "Store",
    "StoreAccessError",
    "StoreAddress",
    "StoreError",
    "StoreUnavailableError",
    "StoreUrlError",
    "TaskData",
    "TaskEntry",
    "TaskFidelity",
    "TaskNameError",
    "TaskRecord",
    "TaskView",
    "UnknownTaskError",
    "UnknownVersionError",
    "Verification",
    "VersionGoneError",
    "Versions",
    "View",
    "__version__",
    "build_clip",
    "class_prototypes",
    "collect",
    "describe_architecture",
    "fuse_experts",
    "get_base",
    "import_expert",
    "load_config",
    "load_task_data",
    "measure_fidelity",
    "open_expert",
    "open_store",
    "pin",
    "put_base",
    "put_expert_file",
    "read_record",
    "rebuild_from_archive",
    "remove_task",
    "rollback",
    "unpin",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("condu")
    elif name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'condu' has no attribute {name!r}")
    globals()[name] = value  # asked once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
