"""The try-out and the cluster on AWS: every field and every file that they name exists, and no port is open to all."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_config
from tests.cluster.deploy.fields import DEPLOY, Shape, documents, problems, typos

COMPOSE = DEPLOY / "compose" / "compose.yaml"
AWS = DEPLOY / "aws" / "cluster.yaml"
SECRETS = ("RAY_AUTH_TOKEN", "S3_SECRET", "GRAFANA_PASSWORD")


def _command(value: Any) -> Iterator[str]:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
        yield f"{value!r} is not a command"


def _depends(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from problems(value, [str])
    else:
        states = ("service_started", "service_healthy", "service_completed_successfully")
        yield from problems(value, Shape(**{"*": Shape("condition", condition=states)}))


_SERVICE = Shape(
    "image",
    image=str, command=_command, environment=Shape(**{"*": str}), volumes=[str], ports=[str], depends_on=_depends,
    deploy=Shape("replicas", replicas=int), shm_size=str, stop_grace_period=re.compile(r"\d+[ms]"),
)  # fmt: skip
_TRY_OUT = Shape(
    "services volumes",
    services=Shape(**{"*": _SERVICE}), volumes=Shape(**{"*": Shape()}), **{"x-condu": dict, "x-node": dict},
)  # fmt: skip
_FREE = ("environment", "services", "volumes", "x-condu", "x-node", "depends_on")


def compose() -> dict[str, Any]:
    (document,) = documents(COMPOSE)
    return document


def test_the_try_out_has_no_unknown_field() -> None:
    assert list(problems(compose(), _TRY_OUT)) == []
    missed = [where for where, changed in typos(compose())
              if where[-2:-1] not in [(free,) for free in _FREE] and where[0] in ("services", "volumes")
              and not list(problems(changed, _TRY_OUT))]  # fmt: skip
    assert missed == [], "a misspelt key is found"


def composer() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


@pytest.mark.processes
def test_compose_itself_accepts_the_try_out() -> None:
    command = composer()
    if command is None:
        pytest.skip("neither `docker compose` nor docker-compose is installed (Debian: apt-get install docker-compose)")
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", **dict.fromkeys(SECRETS, "x")}
    done = subprocess.run([*command, "-f", str(COMPOSE), "config", "-q"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_services_files_and_secrets_that_the_try_out_names_are_there() -> None:
    document = compose()
    services = document["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in document["volumes"] or (COMPOSE.parent / source).resolve().exists(), source
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
    assert set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text())) == set(SECRETS)
    assert set(re.findall(r"^(\w+)=$", (COMPOSE.parent / "env.example").read_text(), re.MULTILINE)) == set(SECRETS)
    (scraped,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    names = scraped["scrape_configs"][0]["dns_sd_configs"][0]["names"]
    assert set(names) == {name for name, service in services.items() if "ray start" in str(service.get("command"))}


def test_the_try_out_s_configuration_works_and_names_what_the_image_holds() -> None:
    config = load_config(COMPOSE.parent / "condu.yaml")
    assert config.store == "s3://condu/try-out"
    root = DEPLOY.parents[1]
    for path in (config.base.architecture, config.base.weights, *(task.data for task in config.tasks)):
        assert (root / path.removeprefix("/opt/condu/")).exists(), path


def valid(config: dict[str, Any]) -> bool:
    """Whether Ray's own validator accepts a cluster file. It reads no account."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception:
        return False
    return True


def test_ray_accepts_the_cluster_on_aws() -> None:
    (config,) = documents(AWS)
    assert valid(config)


@pytest.mark.parametrize("key", ["available_node_types", "head_node_type", "provider", "auth", "max_workers",
                                 "head_start_ray_commands", "docker"])  # fmt: skip
def test_a_misspelt_key_of_the_cluster_on_aws_is_refused(key: str) -> None:
    (config,) = documents(AWS)
    assert not valid({(f"{name}x" if name == key else name): value for name, value in config.items()})


def test_the_cluster_on_aws_is_closed_and_has_roles_of_its_own() -> None:
    (config,) = documents(AWS)
    types = config["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Arn"] for name, kind in types.items()}
    assert len(set(profiles.values())) == len(types), "Ray's own profile may do everything on EC2 and S3"
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["train"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["head"]["resources"] == {"CPU": 0}
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in " ".join(commands)
    (token,) = config["file_mounts"].values()
    ignored = (Path(__file__).resolve().parents[3] / ".gitignore").read_text().splitlines()
    assert token in ignored, "the token is never committed"
