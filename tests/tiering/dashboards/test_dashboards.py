"""dashboards/: what is committed is what is generated; panels say what they ask; alerts can fire and be silent.

Grafana's and Kubernetes' own types are the schemas; `make schemas` fetches them, and no test does.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

pytestmark = pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "dashboards"
NAMES = ("overview", "load", "gpu")
VARIABLES = {"datasource", "job", "instance", "tier"}
FOREIGN = ("DCGM_", "node_", "process_", "harness_")  # what others export


SCHEMAS = ROOT / ".schemas"
OF_PROMETHEUS = {"expr", "step", "titleFormat", "textFormat", "useValueForTime"}
"""What Grafana's Prometheus source keeps in an annotation, which Grafana's own schema of annotations does not know."""
PACKAGES = {"promtool": "prometheus", "kubectl": "kubernetes-client"}
needs_schemas = pytest.mark.skipif(
    not (SCHEMAS / "PrometheusRule.json").exists(),  # the last that is made
    reason="DASHBOARDS AND MONITORS ARE NOT CHECKED AGAINST THEIR SCHEMAS: `make schemas` fetches them (needs npm)",
)


def needs(tool: str) -> pytest.MarkDecorator:
    reason = f"no {tool} here; apt-get install {PACKAGES[tool]} has it"
    return pytest.mark.skipif(shutil.which(tool) is None, reason=reason)


def objections(schema: str, kind: str, value: object) -> list[str]:
    """What the schema of `kind` says against a value."""
    tree = json.loads((SCHEMAS / f"{schema}.json").read_text())
    validator = Draft7Validator({**tree, "$ref": f"#/definitions/{kind}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str) -> dict[str, Any]:
    tree = json.loads((FOLDER / f"{name}.json").read_text())
    assert isinstance(tree, dict)
    return tree


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in load(name)["panels"] if panel["type"] != "row"]


def rules(path: str = "rules.yml") -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / path).read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_what_is_committed_is_what_is_generated(generator: ModuleType) -> None:
    wrong = [path.name for path, text in generator.files().items() if path.read_text() != text]
    assert not wrong, "run: python dashboards/generate.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_states_its_question_with_unit_thresholds_and_room(name: str) -> None:
    dashboard = load(name)
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == VARIABLES
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = set()
    for panel in panels(name):
        assert re.search(r"[?]", panel["description"]), f"{panel['title']} asks nothing"
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"], panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "$datasource"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not places & cells, f"{panel['title']} lies on another panel"
        places |= cells


@pytest.mark.parametrize("name", NAMES)
def test_no_target_names_a_variable_or_a_metric_that_nobody_has(name: str, generator: ModuleType) -> None:
    known = {metric for metric, *_ in generator.metric_rows()}
    for panel in panels(name):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= VARIABLES | {"__rate_interval", "__range"}, panel["title"]
            for metric in re.findall(r"\b([a-zA-Z_]+(?:_[a-z]+)+)(?=[{\[])", target["expr"]):
                base = re.sub(r"_(bucket|sum|count)$", "", metric)
                assert base in known or base.startswith(FOREIGN), f"{panel['title']}: {metric}"


def test_the_grafana_sdk_reads_them_back_unchanged() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    for name in NAMES:
        tree = load(name)
        again = json.loads(JSONEncoder().encode(Dashboard.from_json(tree)))
        for variable in again["templating"]["list"]:
            for key in [key for key in variable if key.startswith("auto")]:
                del variable[key]
        for mark in again["annotations"].get("list", ()):
            del mark["placement"]
        assert again == tree


@needs_schemas
@pytest.mark.parametrize("name", NAMES)
def test_grafanas_schema_has_a_place_for_everything(name: str) -> None:
    dashboard = load(name)
    for mark in dashboard["annotations"].get("list", ()):
        for key in OF_PROMETHEUS & set(mark):
            del mark[key]
    found = objections("dashboard", "Dashboard", dashboard)
    for panel in panels(name):
        found += objections("dashboard", "Panel", panel)
        found += objections(panel["type"], "Options", panel["options"])
        if custom := panel["fieldConfig"]["defaults"].get("custom"):
            found += objections(panel["type"], "FieldConfig", custom)
    assert found == []


@needs_schemas
def test_grafanas_schema_objects_to_what_is_wrong() -> None:
    dashboard = load("overview")
    panel = panels("overview")[0]
    assert not objections("dashboard", "Dashboard", dashboard) + objections("dashboard", "Panel", panel)
    panel["fieldConfig"]["defaults"]["unity"] = "ops"
    panel["options"]["legend"]["displayMode"] = "flying"
    assert objections("dashboard", "Dashboard", {**dashboard, "graphTooltip": "crosshair"})
    assert objections("dashboard", "Dashboard", {**dashboard, "panels": [panel]})
    assert objections("dashboard", "Panel", panel)
    assert objections("timeseries", "Options", panel["options"])


def test_slow_buckets_lead_to_traces() -> None:
    exemplars = [t for name in NAMES for p in panels(name) for t in p["targets"] if t.get("exemplar")]
    assert {re.findall(r"kvtier_\w+", target["expr"])[0] for target in exemplars} == {"kvtier_job_seconds_bucket"}
    sources = yaml.safe_load((FOLDER / "provisioning/datasources/kvtier.yaml").read_text())["datasources"]
    (destination,) = sources[0]["jsonData"]["exemplarTraceIdDestinations"]
    assert (destination["name"], destination["datasourceUid"]) == ("trace_id", sources[1]["uid"])


def test_the_load_dashboard_marks_phases_and_faults() -> None:
    marks = {mark["name"]: mark for mark in load("load")["annotations"]["list"]}
    assert {"Phases", "Faults"} <= set(marks)
    assert 'kind=~"fault|lifted"' in marks["Faults"]["expr"]


@needs("promtool")
def test_prometheus_accepts_the_rules() -> None:
    files = [FOLDER / "rules.yml", FOLDER / "vllm-names.yml"]
    subprocess.run(["promtool", "check", "rules", *files], check=True, capture_output=True)


@needs("promtool")
def test_prometheus_accepts_every_panels_query_and_annotation(tmp_path: Path) -> None:
    from harness.monitoring.observe import expand

    queries = [t["expr"] for name in NAMES for panel in panels(name) for t in panel["targets"]]
    queries += [mark["expr"] for mark in load("load")["annotations"]["list"]]
    recorded = [{"record": f"r{i}", "expr": expand(query, 60, {})} for i, query in enumerate(queries)]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "r.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


@needs("promtool")
def test_alerts_fire_where_they_must_and_nowhere_else() -> None:
    done = subprocess.run(["promtool", "test", "rules", FOLDER / "rules_test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _cases() -> Iterator[tuple[str, bool]]:
    for test in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            yield case["alertname"], bool(case.get("exp_alerts"))


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_firing_and_one_silent_and_says_what_to_do(alert: str) -> None:
    assert {fires for name, fires in _cases() if name == alert} == {True, False}
    assert ALERTS[alert]["annotations"].keys() == {"summary", "runbook"}
    assert ALERTS[alert]["labels"]["severity"] in ("warning", "critical")


def test_compose_listens_on_this_host_only_and_mounts_what_is_there() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["network_mode"] == "host", name
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source.startswith("$") or (FOLDER / source).exists(), mount
    text = (FOLDER / "compose.yaml").read_text() + (FOLDER / "tempo.yaml").read_text()
    assert "0.0.0.0" not in text
    assert text.count("127.0.0.1") >= 5


def kubernetes_objects() -> list[dict[str, Any]]:
    """What the kustomization makes: the ConfigMap, then its resources."""
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (wanted,) = kustomization["configMapGenerator"]
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": wanted["name"], "labels": wanted["options"]["labels"]},
        "data": {name: (FOLDER / name).read_text() for name in wanted["files"]},
    }
    return [config_map, *(yaml.safe_load((FOLDER / path).read_text()) for path in kustomization["resources"])]


@needs_schemas
def test_kubernetes_schemas_have_a_place_for_everything() -> None:
    for resource in kubernetes_objects():
        kind = resource["kind"]
        assert objections(kind, f"I{kind}", resource) == [], kind
        resource["spec" if "spec" in resource else "data"]["bogus"] = 1
        assert objections(kind, f"I{kind}", resource), kind


def test_dashboards_fit_into_a_config_map() -> None:
    assert sum(map(len, kubernetes_objects()[0]["data"].values())) < 1 << 20, "Kubernetes takes no larger one"


@needs("kubectl")
def test_kustomize_makes_the_same() -> None:
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=True)

    def by_kind(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {resource["kind"]: resource for resource in objects}

    assert by_kind(list(yaml.safe_load_all(done.stdout))) == by_kind(kubernetes_objects())


def test_kubernetes_gets_monitors_rules_and_dashboards() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    resources = {}
    for resource in kubernetes_objects()[1:]:
        wanted = "batch/v1" if resource["kind"] == "CronJob" else "monitoring.coreos.com/v1"
        assert resource["apiVersion"] == wanted
        assert resource["metadata"]["name"] == "kvtier"
        resources[resource["kind"]] = resource["spec"]
    assert resources.keys() == {"PodMonitor", "ServiceMonitor", "PrometheusRule", "CronJob"}
    for kind, key in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        assert resources[kind]["selector"]["matchLabels"]
        assert all(endpoint["port"] == "metrics" for endpoint in resources[kind][key])
    selectors = [resources[kind]["selector"]["matchLabels"] for kind in ("PodMonitor", "ServiceMonitor")]
    assert selectors[0] != selectors[1], "what both select would be scraped twice"
    assert resources["PrometheusRule"] == yaml.safe_load((FOLDER / "rules.yml").read_text())
    (config_map,) = kustomization["configMapGenerator"]
    assert sorted(config_map["files"]) == sorted(f"{name}.json" for name in NAMES)
    assert all((FOLDER / name).exists() for name in config_map["files"])


def test_the_cron_job_evicts_as_the_command_line_understands_and_not_before_somebody_wants_it(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from kvtier.config import RunConfig
    from kvtier.fs.file_mapper import FileMapper
    from kvtier.fs.root import open_root
    from kvtier.ops.cli import main

    job = yaml.safe_load((FOLDER / "kubernetes/cronjob.yaml").read_text())["spec"]
    assert job["suspend"] is True
    assert job["concurrencyPolicy"] == "Forbid"
    pod = job["jobTemplate"]["spec"]["template"]
    assert "app.kubernetes.io/part-of" not in pod["metadata"]["labels"], "it would be scraped"
    (container,), (volume,) = pod["spec"]["containers"], pod["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    program, *arguments = container["command"]
    assert program == "kvtier"
    assert mount["mountPath"] in arguments
    here = [str(tmp_path) if word == mount["mountPath"] else word for word in arguments]
    assert CliRunner().invoke(main, here).exit_code == 2, "an empty folder may be a volume that is not mounted"
    open_root(
        FileMapper(str(tmp_path), RunConfig("m")),
        hash_algorithm="sha256",
        none_digest="00",
        block_bytes=4096,
        on_mismatch="refuse",
        dir_mode=0o700,
        file_mode=0o600,
    )
    assert CliRunner().invoke(main, here).exit_code == 0
