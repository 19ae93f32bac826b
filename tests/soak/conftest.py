"""Labs for tests whose machines die. They skip, and say why, where namespaces are refused."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.soak.machines import SOURCE, Machines, why_not
from tests.soak.results import Results


@pytest.fixture(scope="session")
def results() -> Results:
    """What the suite finds, in `soak-results/` or the folder that CONDU_SOAK_RESULTS names."""
    return Results(Path(os.environ.get("CONDU_SOAK_RESULTS", SOURCE / "soak-results")))


@pytest.fixture
def new_lab(request: pytest.FixtureRequest, results: Results) -> Iterator[Callable[[], Machines]]:
    """Makes a lab with an S3 server, as often as it is called; all are taken down at the end, and their logs kept."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:

        def make() -> Machines:
            folder = Path(tempfile.mkdtemp(prefix="lab-"))  # a short path: Ray's sockets are below it
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            lab = stack.enter_context(Machines(folder / "m", read_only=[SOURCE]))
            stack.callback(lab.keep_logs, results.folder / "logs" / re.sub(r"\W+", "-", request.node.name))
            lab.s3()
            return lab

        yield make
