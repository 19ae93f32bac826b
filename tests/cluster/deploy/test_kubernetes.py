"""The manifests: every field exists, both halves read one configuration, and each has the rights that it needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cluster.config import Config, load_config, parse_config
from tests.cluster.deploy.fields import DEPLOY, ROOT, Shape, documents, problems, typos

KUBERNETES = DEPLOY / "kubernetes"
VERSION = "1.30.0"
FILES = sorted((KUBERNETES / "base").glob("*.yaml"))
OWN = {"kustomization.yaml", "condu.yaml"}
_LABELS = Shape(**{"*": str})
_METADATA = Shape(name=str, namespace=str, labels=_LABELS, annotations=_LABELS)


def native(document: dict[str, Any]) -> Iterator[str]:
    if not {"apiVersion", "kind"} <= set(document):
        yield "apiVersion and kind are required"
        return
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        yield str(error)


def pod(template: dict[str, Any]) -> Iterator[str]:
    yield from problems(template, Shape("spec", metadata=_METADATA, spec=dict))
    metadata = {"name": "pod", **template.get("metadata", {})}
    yield from native({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec")})


def serve_config(text: str) -> Iterator[str]:
    yield from problems(
        yaml.safe_load(text),
        Shape(
            "applications http_options proxy_location",
            proxy_location=("EveryNode",),
            http_options=Shape("host port request_timeout_s", host=str, port=int, request_timeout_s=int),
            applications=[
                Shape(
                    "name route_prefix import_path args",
                    name=("condu",),
                    route_prefix=re.compile("/.*"),
                    import_path=("cluster.deploy.app:build",),
                    args=configuration,
                )
            ],
        ),
    )


def configuration(values: Any) -> Iterator[str]:
    try:
        parse_config(values, folder=Path("/"), where="args")
    except ValueError as error:
        yield str(error)


_START = Shape(**{"num-cpus": re.compile(r"\d+"), "metrics-export-port": re.compile(r"\d+")})
_CLUSTER = Shape(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=re.compile(r"\d+\.\d+\.\d+"),
    authOptions=Shape("mode secretName", mode=("token",), secretName=str),
    gcsFaultToleranceOptions=Shape(
        "redisAddress redisPassword",
        redisAddress=re.compile(r"[a-z-]+:\d+"),
        redisPassword=Shape(
            "valueFrom", valueFrom=Shape("secretKeyRef", secretKeyRef=Shape("name key", name=str, key=str))
        ),
    ),
    headGroupSpec=Shape("rayStartParams template", rayStartParams=_START, template=pod),
    workerGroupSpecs=[
        Shape(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=str, replicas=int, minReplicas=int, maxReplicas=int, rayStartParams=_START, template=pod,
        )
    ],
)  # fmt: skip
_KINDS: dict[str, Any] = {
    "RayJob": Shape(
        "apiVersion kind metadata spec",
        apiVersion=("ray.io/v1",), kind=str, metadata=_METADATA,
        spec=Shape(
            "entrypoint rayClusterSpec backoffLimit submissionMode submitterPodTemplate shutdownAfterJobFinishes",
            entrypoint=str, backoffLimit=int, submissionMode=("K8sJobMode",), submitterPodTemplate=pod,
            submitterConfig=Shape("backoffLimit", backoffLimit=int), shutdownAfterJobFinishes=bool,
            ttlSecondsAfterFinished=int, rayClusterSpec=_CLUSTER,
        ),
    ),
    "RayService": Shape(
        "apiVersion kind metadata spec",
        apiVersion=("ray.io/v1",), kind=str, metadata=_METADATA,
        spec=Shape(
            "serveConfigV2 rayClusterConfig excludeHeadPodFromServeSvc",
            serviceUnhealthySecondThreshold=int, deploymentUnhealthySecondThreshold=int,
            excludeHeadPodFromServeSvc=bool, serveConfigV2=serve_config, rayClusterConfig=_CLUSTER,
        ),
    ),
    "PodMonitor": Shape(
        "apiVersion kind metadata spec",
        apiVersion=("monitoring.coreos.com/v1",), kind=str, metadata=_METADATA,
        spec=Shape(
            "selector podMetricsEndpoints",
            selector=Shape(matchExpressions=[Shape("key operator values", key=str, operator=("In",), values=[str])]),
            podMetricsEndpoints=[Shape("port", port=str, interval=re.compile(r"\d+s"))],
        ),
    ),
}  # fmt: skip


def wrong(document: dict[str, Any]) -> list[str]:
    """What is wrong with a document of any kind."""
    return list(problems(document, _KINDS.get(document.get("kind", ""), native)))


def base(kind: str) -> dict[str, Any]:
    (found,) = [d for path in FILES if path.name not in OWN for d in documents(path) if d["kind"] == kind]
    return found


def clusters(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    specs = {document["kind"]: document.get("spec") for document in found}
    return {"RayJob": specs["RayJob"]["rayClusterSpec"], "RayService": specs["RayService"]["rayClusterConfig"]}


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def built(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: overlays can't be built here")
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in OWN], ids=lambda path: path.stem)
def test_every_field_of_the_base_exists(path: Path) -> None:
    assert [problem for document in documents(path) for problem in wrong(document)] == []


_FREE = ("labels", "annotations", "matchLabels", "nodeSelector", "requests", "limits", "serve", "base", "configMap",
         "secret", "items", "emptyDir")  # fmt: skip


@pytest.mark.parametrize("kind", ["RayJob", "RayService", "PodMonitor", "CronJob", "StatefulSet"])
def test_a_misspelt_key_is_found_wherever_it_is(kind: str) -> None:
    document = base(kind)
    missed = []
    tried = list(typos(document))[:: 1 if kind == "PodMonitor" else 7]  # each takes a validation
    for where, changed in tried:
        if not any(part in _FREE for part in where[:-1]) and not wrong(changed):
            missed.append(".".join(map(str, where)))
    assert tried
    assert missed == []


@pytest.mark.processes
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_overlays_build_and_every_field_exists(overlay: str) -> None:
    found = built(overlay)
    assert [problem for document in found for problem in wrong(document)] == []
    images = {c["image"] for cluster in clusters(found).values() for g in groups(cluster)
              for c in g["template"]["spec"]["containers"]}  # fmt: skip
    assert len(images) == 1
    assert not images & {"condu"}, "the overlay names a registry and a tag"
    configured = next(d for d in found if d["kind"] == "ConfigMap")["data"]["condu.yaml"]
    job = parse_config(yaml.safe_load(configured), folder=Path("/"), where="condu.yaml")
    check_both_halves_agree(job, found)
    needs = {"RayJob": job.train.num_gpus, "RayService": job.serve.num_gpus}
    for kind, cluster in clusters(found).items():
        (container,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == needs[kind]


def check_both_halves_agree(job: Config, found: list[dict[str, Any]]) -> None:
    text = next(d for d in found if d["kind"] == "RayService")["spec"]["serveConfigV2"]
    service = yaml.safe_load(text)
    args = parse_config(service["applications"][0]["args"], folder=Path("/"), where="args")
    for section in ("store", "base", "serve", "predict", "s3", "cache"):
        assert getattr(args, section) == getattr(job, section), section
    (container,) = clusters(found)["RayService"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert args.serve.num_cpus <= float(container["resources"]["requests"]["cpu"])
    assert args.serve.replicas.min >= 2
    assert args.serve.replicas.per_node == 1, "a pod has no room for a second replica, so an update can't overlap"
    assert service["http_options"]["request_timeout_s"] > args.serve.request_timeout_s
    gc = next(d for d in found if d["kind"] == "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert gc["containers"][0]["args"][-1] == job.store


def test_job_service_and_gc_read_one_configuration() -> None:
    job = load_config(KUBERNETES / "base" / "condu.yaml")
    check_both_halves_agree(job, [base("RayService"), base("RayJob"), base("CronJob")])
    mounted = base("RayJob")["spec"]["entrypoint"].split()[2]
    assert mounted == "/etc/condu/condu.yaml"


def test_nothing_runs_on_the_heads_and_no_service_answers_from_one() -> None:
    for cluster in clusters([base("RayJob"), base("RayService")]).values():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert base("RayService")["spec"]["excludeHeadPodFromServeSvc"] is True


def test_pods_get_more_time_than_a_drain_takes() -> None:
    spec = base("RayService")["spec"]
    timeout = yaml.safe_load(spec["serveConfigV2"])["http_options"]["request_timeout_s"]
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        template = group["template"]["spec"]
        env = {one["name"]: one["value"] for one in template["containers"][0]["env"]}
        drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert timeout < drain < template["terminationGracePeriodSeconds"]


def test_every_container_is_unprivileged_and_probed_and_no_secret_is_written_down() -> None:
    for cluster in clusters([base("RayJob"), base("RayService")]).values():
        for group in groups(cluster):
            spec = group["template"]["spec"]
            assert spec["securityContext"]["runAsNonRoot"]
            (container,) = spec["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"readinessProbe", "livenessProbe", "resources"} <= set(container)
            assert {volume["name"] for volume in spec["volumes"]} >= {m["name"] for m in container["volumeMounts"]}
    kinds = {document["kind"] for path in FILES if path.name not in OWN for document in documents(path)}
    assert "Secret" not in kinds
    assert not re.search(r"AKIA|aws_secret|password: [\"']?\w+$", "".join(path.read_text() for path in FILES))


def test_every_port_name_and_label_that_something_selects_is_there() -> None:
    everything = [base("RayJob"), base("RayService")]
    templates = [group["template"] for cluster in clusters(everything).values() for group in groups(cluster)]
    labels = {t["metadata"]["labels"]["app.kubernetes.io/component"] for t in templates} | {"redis", "submit"}
    text = (KUBERNETES / "base" / "network.yaml").read_text() + (KUBERNETES / "base" / "disruption.yaml").read_text()
    assert set(re.findall(r"component: (\w+)", text)) <= labels
    (port,) = {end["port"] for end in base("PodMonitor")["spec"]["podMetricsEndpoints"]}
    for template in templates:
        ports = {p["name"]: p["containerPort"] for p in template["spec"]["containers"][0]["ports"]}
        assert ports[port] == 8080
    assert f"port: {ports[port]}" in text


def test_the_policies_are_the_actions_of_the_docs_and_no_more() -> None:
    table = re.findall(r"^\| `(s3:\w+)` \| ([^|]+) \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    assert len(table) == 5
    for half in ("train", "serve"):
        policy = json.loads((KUBERNETES / "iam" / f"{half}.json").read_text())
        granted = {action for statement in policy["Statement"] for action in statement["Action"]}
        assert granted == {action for action, needed_by in table if half == "train" or needed_by == "all"}
        assert all(statement["Resource"] != "*" for statement in policy["Statement"])
    accounts = {d["metadata"]["name"] for d in documents(KUBERNETES / "base" / "service-accounts.yaml")}
    for kind, cluster in clusters([base("RayJob"), base("RayService")]).items():
        used = {group["template"]["spec"]["serviceAccountName"] for group in groups(cluster)}
        assert used == {"condu-train" if kind == "RayJob" else "condu-serve"} <= accounts


def test_the_base_lists_every_file() -> None:
    shape = Shape(
        "apiVersion kind resources",
        apiVersion=("kustomize.config.k8s.io/v1beta1",), kind=("Kustomization",), namespace=str, resources=[str],
        configMapGenerator=[Shape("name files", name=str, namespace=str, behavior=("replace",), files=[str])],
        generatorOptions=Shape(disableNameSuffixHash=bool), labels=[Shape("pairs", pairs=_LABELS)],
        images=[Shape("name newName newTag", name=str, newName=str, newTag=str)],
        patches=[Shape(path=str, patch=str, target=Shape("kind name", kind=str, name=str))],
    )  # fmt: skip
    for path in sorted(KUBERNETES.rglob("kustomization.yaml")):
        (document,) = documents(path)
        assert list(problems(document, shape)) == [], path
    (document,) = documents(KUBERNETES / "base" / "kustomization.yaml")
    assert {*document["resources"], *OWN} == {path.name for path in FILES}
