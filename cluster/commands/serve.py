"""`condu serve`: the HTTP service, until it is stopped."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from cluster.commands.run import ConfigArgument
from cluster.config import load_config
from cluster.output import console
from cluster.serving_config import service_options, start_service
from cluster.session import ray_session
from serving.door import check_tokens


def serve(
    config: ConfigArgument,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Overrides the port of the configuration.")] = None,
) -> None:
    """Serve the newest version over HTTP, and every newer one as soon as it is published. Stop with Ctrl-C."""
    settings = load_config(config)
    options = service_options(settings, port=port)
    check_tokens(options)  # before Ray starts, which takes longer
    stopped = threading.Event()
    with ray_session(settings.ray, store=settings.store):
        from serving.app import stop

        where = start_service(options)
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopped.set())
            console.print(f"serving {options.address.url} on [bold]{', '.join(where)}[/]  (docs: /docs)")
            console.print("stop with Ctrl-C")
            stopped.wait()
        finally:
            stop(options.name)
    console.print("stopped")
