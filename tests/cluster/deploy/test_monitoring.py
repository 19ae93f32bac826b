"""Prometheus and Grafana: rules and panels ask for metrics that exist, and the rules fire when they should."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from tests.cluster.deploy.fields import DEPLOY, ROOT, Shape, documents, problems, typos

PROMETHEUS = DEPLOY / "prometheus"
GRAFANA = DEPLOY / "grafana"
RULES = PROMETHEUS / "rules.yml"
_FOREIGN = {"kube_cronjob_status_last_successful_time"}
"""Of kube-state-metrics."""
_SUFFIXES = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
_RULES = Shape(
    "groups",
    groups=[
        Shape(
            "name rules",
            name=str,
            rules=[
                Shape(
                    "alert expr labels annotations",
                    alert=re.compile("Condu[A-Za-z]+"), expr=str, labels=Shape("severity", severity=("page", "ticket")),
                    annotations=Shape("summary", summary=str), **{"for": re.compile(r"\d+[smh]")},
                )
            ],
        )
    ],
)  # fmt: skip
_PANEL = Shape(
    "id type title gridPos targets datasource fieldConfig",
    id=int, type=("timeseries",), title=str, description=str, gridPos=Shape("h w x y", h=int, w=int, x=int, y=int),
    datasource=Shape("type uid", type=("prometheus",), uid=("condu-prometheus",)),
    fieldConfig=Shape("defaults", defaults=Shape("unit", unit=str, min=int), overrides=[dict]),
    targets=[Shape("refId expr", refId=re.compile("[A-Z]"), expr=str, legendFormat=str)],
)  # fmt: skip
_DASHBOARD = Shape(
    "uid title panels schemaVersion",
    uid=str, title=str, tags=[str], timezone=str, schemaVersion=int, version=int, refresh=str, editable=bool,
    time=Shape("from to", **{"from": str, "to": str}), annotations=Shape(list=[dict]), templating=Shape(list=[dict]),
    panels=[_PANEL],
)  # fmt: skip


def own_metrics() -> dict[str, set[str]]:
    """Name as Prometheus has it, to its tags, of every metric that the packages make."""
    found: dict[str, set[str]] = {}
    for path in sorted([*(ROOT / "serving").rglob("*.py"), *(ROOT / "cluster").rglob("*.py")]):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not call.args or not isinstance(call.args[0], ast.Constant):
                continue
            kind, name = ast.unparse(call.func).rpartition(".")[2], str(call.args[0].value)
            if kind in _SUFFIXES and name.startswith("condu_"):
                tags = {tag for word in call.keywords if word.arg == "tag_keys" for tag in ast.literal_eval(word.value)}
                for suffix in _SUFFIXES[kind]:
                    found[f"ray_{name}{suffix}"] = tags | ({"le"} if suffix == "_bucket" else set())
    return found


def expressions() -> dict[str, str]:
    rules = {rule["alert"]: rule["expr"] for group in documents(RULES)[0]["groups"] for rule in group["rules"]}
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    return rules | {f"{p['title']} {t['refId']}": t["expr"] for p in panels for t in p["targets"]}


def asked(expression: str) -> set[str]:
    """Metrics that an expression names."""
    return set(re.findall(r"\b((?:ray|kube|condu)_[a-z_]+)", re.sub(r'"[^"]*"', "", expression)))


def test_every_metric_of_rules_and_panels_exists() -> None:
    own = own_metrics()
    assert len(own) > 10
    source = "".join(path.read_text() for path in [
        *Path(ray.__file__).parent.glob("serve/_private/*.py"),
        *Path(ray.__file__).parent.glob("dashboard/modules/reporter/*.py"),
    ])  # fmt: skip
    for where, expression in expressions().items():
        names = asked(expression)
        assert names, where
        for name in names:
            known = name in own or name in _FOREIGN or f'"{name.removeprefix("ray_")}"' in source
            assert known, f"{where} asks for {name}"


def test_every_label_of_our_metrics_that_is_asked_for_exists() -> None:
    own, everywhere = own_metrics(), {"instance", "replica", "deployment", "application"}
    for where, expression in expressions().items():
        ours = [own[name] for name in asked(expression) if name in own]
        if ours:
            groups = re.findall(r"by \(([a-z_, ]+)\)", expression)
            labels = {label.strip() for group in groups for label in group.split(",")}
            labels |= set(re.findall(r"[{,]\s*([a-z_]+)\s*=", expression))
            assert labels <= everywhere.union(*ours), where


def test_the_files_have_no_unknown_field() -> None:
    (rules,) = documents(RULES)
    assert list(problems(rules, _RULES)) == []
    dashboard = json.loads((GRAFANA / "dashboard.json").read_text())
    assert list(problems(dashboard, _DASHBOARD)) == []
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    missed = [where for where, changed in typos(rules) if not list(problems(changed, _RULES))]
    missed += [where for where, changed in typos(dashboard) if not list(problems(changed, _DASHBOARD))]
    assert missed == []


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    (source,) = documents(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")
    assert list(problems(source, Shape("apiVersion datasources", apiVersion=int, datasources=[
        Shape("name uid type url", name=str, uid=("condu-prometheus",), type=("prometheus",), access=("proxy",),
              url=("http://prometheus:9090",), isDefault=bool)]))) == []  # fmt: skip
    (boards,) = documents(GRAFANA / "provisioning" / "dashboards" / "condu.yaml")
    assert list(problems(boards, Shape("apiVersion providers", apiVersion=int, providers=[
        Shape("name type options", name=str, type=("file",), options=Shape("path", path=("/etc/grafana/dashboards",)))
    ]))) == []  # fmt: skip


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus): the rules are not run here")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True)


@pytest.mark.processes
def test_the_rules_fire_when_they_should_and_stay_quiet_otherwise() -> None:
    done = promtool("test", "rules", PROMETHEUS / "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    ("right", "typo"),
    [
        ('status="429"', 'status="428"'),
        ("histogram_quantile", "histogram_quantle"),
        ("for: 2m", "for: 2minutes"),
    ],
)
def test_a_wrong_rule_fails_its_test(tmp_path: Path, right: str, typo: str) -> None:
    text = RULES.read_text()
    assert right in text
    (tmp_path / "rules.yml").write_text(text.replace(right, typo))
    (tmp_path / "rules_test.yml").write_bytes((PROMETHEUS / "rules_test.yml").read_bytes())
    assert promtool("test", "rules", tmp_path / "rules_test.yml").returncode != 0


def test_every_rule_has_a_test_and_a_word_in_the_docs() -> None:
    tests: dict[str, Any] = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())
    fired = {one["alertname"] for test in tests["tests"] for one in test["alert_rule_test"] if one.get("exp_alerts")}
    rules = {rule["alert"] for group in documents(RULES)[0]["groups"] for rule in group["rules"]}
    assert fired == rules
    page = (ROOT / "docs" / "deploying.md").read_text()
    assert [rule for rule in rules if f"`{rule}`" not in page] == []
