"""dashboards/: generated files are up to date, panels state questions, alerts fire and stay silent.

The schemas are Grafana's and Kubernetes' own types. `make schemas` fetches them; no test does.
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
OF_EXPORTERS = ("DCGM_", "node_", "process_", "harness_")

SCHEMAS = ROOT / ".schemas"
OF_PROMETHEUS = {"expr", "step", "titleFormat", "textFormat", "useValueForTime"}
"""Keys of Grafana's Prometheus source in an annotation, which Grafana's own schema of annotations lacks."""
PACKAGES = {"promtool": "prometheus", "kubectl": "kubernetes-client"}
needs_schemas = pytest.mark.skipif(
    not (SCHEMAS / "PrometheusRule.json").exists(),  # the last that is made
    reason="DASHBOARDS AND MONITORS ARE NOT CHECKED AGAINST THEIR SCHEMAS: `make schemas` fetches them (needs npm)",
)


def needs(tool: str) -> pytest.MarkDecorator:
    reason = f"{tool} is not installed; apt-get install {PACKAGES[tool]} has it"
    return pytest.mark.skipif(shutil.which(tool) is None, reason=reason)


def schema_errors(schema: str, kind: str, value: object) -> list[str]:
    """Errors of a value against the schema of `kind`."""
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


def variables(name: str) -> set[str]:
    """The variables of a dashboard."""
    return VARIABLES | ({"host"} if name == "gpu" else set())


def load(name: str) -> dict[str, Any]:
    tree = json.loads((FOLDER / f"{name}.json").read_text())
    assert isinstance(tree, dict)
    return tree


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in load(name)["panels"] if panel["type"] != "row"]


def rules(path: str = "rules.yml") -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / path).read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_generated_files_are_up_to_date(generator: ModuleType) -> None:
    wrong = [path.name for path, text in generator.files().items() if path.read_text() != text]
    assert not wrong, "run: python dashboards/generate.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_states_its_question_with_unit_thresholds_and_room(name: str) -> None:
    dashboard = load(name)
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == variables(name)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = set()
    for panel in panels(name):
        assert re.search(r"[?]", panel["description"]), f"{panel['title']} states no question"
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
        assert not places & cells, f"{panel['title']} overlaps another panel"
        places |= cells


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_links_to_the_others_and_its_legends_have_figures(name: str) -> None:
    dashboard = load(name)
    (link,) = dashboard["links"]
    assert (link["type"], link["keepTime"], link["includeVars"]) == ("dashboards", True, True)
    assert set(link["tags"]) <= set(dashboard["tags"])
    for panel in panels(name):
        if panel["type"] == "timeseries":
            assert {"lastNotNull", "max"} <= set(panel["options"]["legend"]["calcs"]), panel["title"]


def test_panels_of_a_node_are_limited_to_the_selected_hosts() -> None:
    targets = [target["expr"] for name in NAMES for panel in panels(name) for target in panel["targets"]]
    of_node = [expr for expr in targets if re.search(r"\b(DCGM|node)_", expr)]
    assert of_node
    assert [expr for expr in of_node if '=~"$host"' not in expr] == []


def test_no_panel_mixes_a_level_with_a_rate() -> None:
    for panel in (panel for name in NAMES for panel in panels(name)):
        rates = {"rate(" in target["expr"] for target in panel["targets"]}
        assert len(rates) == 1, panel["title"]


def test_labels_have_one_name_for_load_and_store(generator: ModuleType) -> None:
    texts = [path.read_text() for path in (*FOLDER.glob("*.json"), FOLDER / "rules.yml", FOLDER / "vllm-names.yml")]
    used = {word for text in texts for word in re.findall(r"kvtier_\w+|\b(?:class|group)\b(?=[,)=}])", text)}
    deprecated = {f"kvtier_{old}" for old in generator.DEPRECATED_NAMES.values()}
    assert {word for word in used if word.removesuffix("_total") in deprecated | {"class", "group"}} == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_and_metric_of_a_target_exists(name: str, generator: ModuleType) -> None:
    known = {metric for metric, *_ in generator.metric_rows()}
    for panel in panels(name):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= variables(name) | {"__rate_interval", "__range"}, panel["title"]
            for metric in re.findall(r"\b([a-zA-Z_]+(?:_[a-z]+)+)(?=[{\[])", target["expr"]):
                base = re.sub(r"_(bucket|sum|count)$", "", metric)
                assert base in known or base.startswith(OF_EXPORTERS), f"{panel['title']}: {metric}"


def test_the_grafana_sdk_reads_them_back_unchanged() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    for name in NAMES:
        tree = load(name)
        again = json.loads(JSONEncoder().encode(Dashboard.from_json(tree)))
        for variable in again["templating"]["list"]:
            for key in [key for key in variable if key.startswith("auto")]:
                del variable[key]
        for item in (*again["annotations"].get("list", ()), *again["links"]):
            del item["placement"]
        assert again == tree


@needs_schemas
@pytest.mark.parametrize("name", NAMES)
def test_dashboards_satisfy_grafanas_schema(name: str) -> None:
    dashboard = load(name)
    for mark in dashboard["annotations"].get("list", ()):
        for key in OF_PROMETHEUS & set(mark):
            del mark[key]
    found = schema_errors("dashboard", "Dashboard", dashboard)
    for panel in panels(name):
        found += schema_errors("dashboard", "Panel", panel)
        found += schema_errors(panel["type"], "Options", panel["options"])
        if custom := panel["fieldConfig"]["defaults"].get("custom"):
            found += schema_errors(panel["type"], "FieldConfig", custom)
    assert found == []


@needs_schemas
def test_grafanas_schema_finds_errors() -> None:
    dashboard = load("overview")
    panel = panels("overview")[0]
    assert not schema_errors("dashboard", "Dashboard", dashboard) + schema_errors("dashboard", "Panel", panel)
    panel["fieldConfig"]["defaults"]["unity"] = "ops"
    panel["options"]["legend"]["displayMode"] = "flying"
    assert schema_errors("dashboard", "Dashboard", {**dashboard, "graphTooltip": "crosshair"})
    assert schema_errors("dashboard", "Dashboard", {**dashboard, "panels": [panel]})
    assert schema_errors("dashboard", "Panel", panel)
    assert schema_errors("timeseries", "Options", panel["options"])


def test_latency_exemplars_link_to_traces() -> None:
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
    from harness.monitoring.live_dashboards import expand

    queries = [t["expr"] for name in NAMES for panel in panels(name) for t in panel["targets"]]
    queries += [mark["expr"] for mark in load("load")["annotations"]["list"]]
    recorded = [{"record": f"r{i}", "expr": expand(query, 60, {})} for i, query in enumerate(queries)]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "r.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


@needs("promtool")
def test_alerts_fire_as_rules_test_states() -> None:
    done = subprocess.run(["promtool", "test", "rules", FOLDER / "rules_test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _cases() -> Iterator[tuple[str, bool]]:
    for test in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            yield case["alertname"], bool(case.get("exp_alerts"))


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_firing_and_a_silent_case_and_a_runbook(alert: str) -> None:
    assert {fires for name, fires in _cases() if name == alert} == {True, False}
    assert ALERTS[alert]["annotations"].keys() == {"summary", "runbook_url"}
    page, _, anchor = ALERTS[alert]["annotations"]["runbook_url"].partition("#")
    titles = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert ALERTS[alert]["labels"]["severity"] in ("warning", "critical")


def test_compose_listens_on_loopback_and_mounts_existing_files() -> None:
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
    """The objects of the kustomization: the ConfigMap, then its resources."""
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
def test_kubernetes_objects_satisfy_their_schemas() -> None:
    for resource in kubernetes_objects():
        kind = resource["kind"]
        assert schema_errors(kind, f"I{kind}", resource) == [], kind
        resource["spec" if "spec" in resource else "data"]["bogus"] = 1
        assert schema_errors(kind, f"I{kind}", resource), kind


def test_dashboards_fit_into_a_config_map() -> None:
    assert sum(map(len, kubernetes_objects()[0]["data"].values())) < 1 << 20, "Kubernetes takes no larger one"


@needs("kubectl")
def test_kustomize_makes_the_same_objects() -> None:
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
    assert selectors[0] != selectors[1], "a pod that both select is scraped twice"
    assert resources["PrometheusRule"] == yaml.safe_load((FOLDER / "rules.yml").read_text())
    (config_map,) = kustomization["configMapGenerator"]
    assert sorted(config_map["files"]) == sorted(f"{name}.json" for name in NAMES)
    assert all((FOLDER / name).exists() for name in config_map["files"])


def test_the_cron_job_is_suspended_and_its_command_is_valid(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from kvtier.config import RunConfig
    from kvtier.fs.file_mapper import FileMapper
    from kvtier.fs.root_manifest import open_root
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
    assert CliRunner().invoke(main, here).exit_code == 2, "an empty folder may be an unmounted volume"
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
