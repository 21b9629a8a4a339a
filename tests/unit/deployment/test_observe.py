"""Dashboards, rules and docs use existing metrics, with expressions that are correct for any number of processes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.telemetry.instruments import Aggregation, Definition, Exporter
from tests.support.metrics import api_metrics
from tests.support.stack import REPOSITORY

OBSERVE = REPOSITORY / "observe"
DASHBOARDS = sorted((OBSERVE / "grafana" / "dashboards").glob("*.json"))
RULES = yaml.safe_load((OBSERVE / "rules" / "headrace.rules.yml").read_text())
RULE_TESTS = [
    test
    for file in sorted((OBSERVE / "rules").glob("*.test.yml"))
    for test in yaml.safe_load(file.read_text())["tests"]
]
DEFINITIONS = api_metrics().definitions
BY_NAME = {definition.name: definition for definition in DEFINITIONS}
# Values that every API process reads from the rows. Not the slots: workers export them as well, beside their jobs.
QUEUE_STATE = {
    name for name, one in BY_NAME.items() if one.aggregation is Aggregation.MAX and one.exporters == (Exporter.API,)
}
# Metrics of the Prometheus client library.
FOREIGN = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def dashboard(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def expressions() -> Iterator[tuple[str, str]]:
    """All PromQL expressions of dashboards, rules and documentation, each with its location."""
    for path in DASHBOARDS:
        for panel in dashboard(path)["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", target["expr"]
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for page in sorted((REPOSITORY / "docs").glob("*.md")):
        for block in re.findall(r"^```promql\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            for number, line in enumerate(block.splitlines()):
                yield f"{page.name}: {number} {line[:40]}", line.partition(" #")[0]


EXPRESSIONS = list(expressions())


def names(expression: str) -> set[str]:
    """The metrics in an expression."""
    return set(re.findall(r"\b(?:headrace|process)[a-z_0-9:]*", re.sub(r'"[^"]*"', '""', expression)))


def defined(name: str) -> Definition | None:
    return BY_NAME.get(name) or BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expressions_use_defined_metrics(where: str, expression: str) -> None:
    for name in names(expression) - RECORDED - FOREIGN:
        definition = defined(name)
        assert definition is not None, f"{where}: {name} is not defined"
        if name.endswith(("_bucket", "_sum", "_count")):
            assert definition.kind == "histogram"


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expressions_aggregate_each_metric_correctly(where: str, expression: str) -> None:
    for name in names(expression) - RECORDED - FOREIGN:
        definition = defined(name)
        assert definition is not None
        before = [expression[: found.start()] for found in re.finditer(rf"\b{name}\b", expression)]
        if definition.kind in ("counter", "histogram"):
            assert all(re.search(r"(rate|increase)\(\s*$", text) for text in before), f"{where}: {name} needs a rate"
        elif name in QUEUE_STATE:
            assert all(re.search(r"\bmax( by \([a-z, ]*\))? \($|\bmax\($", text) for text in before), (
                f"{where}: {name} needs a max over processes first"
            )
        elif definition.aggregation is Aggregation.MIN:
            assert all(re.search(r"\b(min|absent)\($", text) for text in before), f"{where}: {name} needs a min"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_valid(path: Path) -> None:
    board = dashboard(path)
    assert re.fullmatch(r"headrace-[a-z]+", board["uid"])
    assert board["title"]
    assert board["schemaVersion"] >= 36
    variables = {variable["name"] for variable in board["templating"]["list"]}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        position = panel["gridPos"]
        assert position["w"] > 0
        assert position["h"] > 0
        assert position["x"] + position["w"] <= 24, panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?([a-z_]+)\}?", target["expr"])) - {"__rate_interval"}
            assert used <= variables, panel["title"]
            braces = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert all(label in target["expr"] or label in ("instance", "model", "job") for label in braces)
    for one, other in combinations(board["panels"], 2):
        assert not _overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_dashboards_have_unique_ids() -> None:
    assert len(DASHBOARDS) == len({dashboard(path)["uid"] for path in DASHBOARDS}) == 3


SHOWN = set().union(*(names(expression) for where, expression in EXPRESSIONS if ".json" in where))


def test_dashboards_show_why_jobs_wait_for_an_upstream() -> None:
    assert {
        "headrace_upstream_breaker_open",
        "headrace_deferred_jobs",
        "headrace_jobs_deferred_total",
        "headrace_upstream_messages_held",
        "headrace_upstream_endpoint_available",
        "headrace_models_reloads_total",
    } <= SHOWN


@pytest.mark.parametrize(
    "feature",
    [
        "route_",
        "job_fallbacks",
        "cache_",
        "followers",
        "conversations_",
        "context_",
        "summary_",
        "token_",
        "usage_",
        "budget_",
        "rate_limit",
        "warm",
    ],
)
def test_dashboards_show_all_metrics_of_routes_caches_contexts_and_limits(feature: str) -> None:
    metrics = {name for name in BY_NAME if name.startswith(f"headrace_{feature}")}
    assert metrics
    assert not metrics - {re.sub(r"_(bucket|sum|count)$", "", name) for name in SHOWN}


def test_the_second_row_of_the_overview_shows_the_stages_of_the_first_token() -> None:
    panels = dashboard(OBSERVE / "grafana" / "dashboards" / "overview.json")["panels"]
    second = [panel for panel in panels if panel["type"] == "row"][1]
    assert "first tokens slow" in second["title"]
    stages = panels[panels.index(second) + 1]
    assert stages["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    stage_metrics = set().union(*(names(target["expr"]) for target in stages["targets"]))
    assert {name.rpartition("_")[0] for name in stage_metrics} == {
        "headrace_queue_wait_seconds",
        "headrace_dispatch_seconds",
        "headrace_engine_first_token_seconds",
    }


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_runbook_section_and_a_test_in_which_it_fires(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["summary"]
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    sections = re.findall(r"^## (\w+)$", (REPOSITORY / page).read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert name in sections
    fired = [
        case
        for test in RULE_TESTS
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == name and case["exp_alerts"]
    ]
    assert fired, f"no test in observe/rules/*.test.yml lets {name} fire"


def test_the_runbook_has_one_section_for_each_alert() -> None:
    sections = re.findall(r"^## (\w+)$", (REPOSITORY / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sections == [alert["alert"] for alert in ALERTS]


def test_the_documented_table_matches_the_definitions() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    shown = [line for line in page.splitlines() if line.startswith("| `headrace_")]
    assert shown == [_row(definition) for definition in DEFINITIONS], "\n".join(map(_row, DEFINITIONS))


def _row(definition: Definition) -> str:
    labels = ", ".join(f"`{label.name}`" for label in definition.labels)
    columns = f"`{definition.name}`", definition.kind, labels, ", ".join(definition.exporters), definition.aggregation
    return f"| {' | '.join(columns)} | {definition.help_text} |"


def test_each_configuration_scrapes_api_and_workers() -> None:
    for kind in ("one-box", "compose", "kubernetes"):
        config = yaml.safe_load((OBSERVE / f"prometheus.{kind}.yml").read_text())
        assert [job["job_name"] for job in config["scrape_configs"]] == ["headrace-api", "headrace-worker"]
        (pattern,) = config["rule_files"]
        assert [path.name for path in OBSERVE.glob(pattern)] == ["headrace.rules.yml"]


def test_kubernetes_pods_match_the_scrape_configuration() -> None:
    config = yaml.safe_load((OBSERVE / "prometheus.kubernetes.yml").read_text())
    manifests = {"api": "k8s/base/api.yaml", "worker": "k8s/worker/worker.yaml"}
    for job in config["scrape_configs"]:
        kept = {rule["source_labels"][0]: rule["regex"] for rule in job["relabel_configs"] if "regex" in rule}
        component = kept["__meta_kubernetes_pod_label_app_kubernetes_io_component"]
        documents = yaml.safe_load_all((REPOSITORY / manifests[component]).read_text())
        (pod,) = [one["spec"]["template"] for one in documents if one["kind"] == "Deployment"]
        assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
        ports = [port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", ())]
        assert kept["__meta_kubernetes_pod_container_port_name"] in ports
        folder = (REPOSITORY / manifests[component]).parent
        labels = yaml.safe_load((folder / "kustomization.yaml").read_text())["labels"]
        assert (
            labels[0]["pairs"]["app.kubernetes.io/part-of"]
            == (kept["__meta_kubernetes_pod_label_app_kubernetes_io_part_of"])
        )


def test_compose_services_match_the_scrape_configuration() -> None:
    config = yaml.safe_load((OBSERVE / "prometheus.compose.yml").read_text())
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    scraped: dict[str, int] = {}
    for job in config["scrape_configs"]:
        for discovery in job["dns_sd_configs"]:
            scraped |= dict.fromkeys(discovery["names"], discovery["port"])
    workers = {name for name, service in services.items() if "HEADRACE_METRICS_PORT" in service.get("environment", {})}
    assert set(scraped) == {"api", *workers}
    for name in workers:
        assert services[name]["environment"]["HEADRACE_METRICS_PORT"] == scraped[name]
        assert services[name]["environment"]["HEADRACE_METRICS_HOST"] == "0.0.0.0"
