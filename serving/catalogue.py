"""Lists the tasks of a version and the versions of the store."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from fusion.answers.view import View
from fusion.errors import DamagedBlobError, FormatError, UnknownVersionError, VersionGoneError
from fusion.store import Store
from fusion.versions.history import Versions
from serving.schemas import TaskInfo, TasksResponse, VersionInfo, VersionsResponse

PAGE = 50
_READ_THREADS = 8
_REMEMBERED = 1000


def tasks_of(view: View) -> TasksResponse:
    entries = view.manifest.state.tasks
    return TasksResponse(
        version=view.version,
        tasks=[
            TaskInfo(
                name=name,
                classes=list(task.classes),
                templates=list(task.templates),
                aliases={name: list(others) for name, others in task.aliases.items()},
                has_expert=task.has_expert,
                session=entries[name].session,
                expert=task.expert,
                routable=task.prototypes is not None,
            )
            for name, task in view.tasks.items()
        ],
    )


class Catalogue:
    """Pages of versions. Manifests are immutable, so each is read once. Blocks: call it in a thread."""

    def __init__(self, store: Store) -> None:
        self._versions = Versions(store)
        self._read: OrderedDict[int, VersionInfo] = OrderedDict()

    def page(self, *, before: int | None, serving: int | None) -> VersionsResponse:
        """The newest versions, or the newest below `before`. Costs one listing and one read per new version."""
        numbers = [
            n for n in sorted(self._versions.all_numbers(), reverse=True) if n and (before is None or n < before)
        ]
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            infos = [info for info in pool.map(self._info, numbers[:PAGE]) if info]
        more = numbers[PAGE - 1] if len(numbers) > PAGE else None
        return VersionsResponse(serving=serving, versions=infos, before=more)

    def _info(self, number: int) -> VersionInfo | None:
        if known := self._read.get(number):
            return known
        try:
            manifest = self._versions.read(number)
        except (VersionGoneError, UnknownVersionError):
            return None  # gc removed it after the listing
        except (DamagedBlobError, FormatError) as error:
            return VersionInfo(version=number, problem=str(error))
        info = VersionInfo(
            version=number,
            created=manifest.created.get("at"),  # by whom and on which machine is not for clients to know
            why=manifest.created.get("why"),
            mode=dict(manifest.mode),
            num_tasks=len(manifest.state.tasks),
        )
        self._read[number] = info
        while len(self._read) > _REMEMBERED:
            self._read.popitem(last=False)
        return info
