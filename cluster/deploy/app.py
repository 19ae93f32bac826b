"""The builder that `serve deploy` and KubeRay's RayService name: `import_path: cluster.deploy.app:build`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import parse_config


def build(args: dict[str, Any]) -> Any:
    """The service of a configuration, as a Serve application.

    Args:
        args: what a configuration file holds, as values. Paths are absolute: there is no file that they could be
            relative to. Without effect are `ray`, as the cluster is there already, and the `host`, `port`, `name` and
            `route` of `serve`: Serve's own configuration has them. So `serve.auth: auto` asks for tokens.
    Returns: a `ray.serve.Application`. It runs once per deploy, on the cluster.
    Raises: ConfigError with every mistake, and where tokens are asked for and there is none; UnknownVersionError while
        nothing is published; the store's errors.
    """
    from cluster.serving_config import service_options
    from serving.app import build_app, check_store
    from serving.door import check_tokens

    config = parse_config(args, folder=Path("/"), where="args of the Serve application")
    options = replace(service_options(config), host_is_told=False)
    check_store(options)
    check_tokens(options)
    return build_app(options)
