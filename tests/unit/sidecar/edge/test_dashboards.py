"""Grafana's dashboards ask for metrics and labels that sidecars really export."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.trace import TracerProvider

from sidecar.core.call import Decision
from sidecar.core.readiness import Alarms
from sidecar.edge.status import NodeView
from sidecar.edge.telemetry import Telemetry
from tests.support.sidecar_core import Core, RuleDecider, attempt
from trust.errors import Reason

FOLDER: Final = Path(__file__).parents[4] / "compose" / "grafana" / "dashboards"
DASHBOARDS: Final = sorted(path.name for path in FOLDER.glob("*.json"))
# Of the resource (sidecar.edge.telemetry.start); the collector copies them to every metric.
RESOURCE: Final = frozenset({"egm_node", "egm_trust_domain", "service_instance_id", "service_name", "le"})
_UNITS: Final = {"s": "_seconds", "1": "_ratio"}
_METRIC: Final = re.compile(r"\begm_[a-z_]+(?=[{\[) ,]|$)")
_SELECTOR: Final = re.compile(r"\{([^}]*)\}")
_LABEL: Final = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
_BY: Final = re.compile(r"\bby \(([^)]*)\)")


@pytest.fixture(scope="module")
def exported() -> Iterator[dict[str, frozenset[str]]]:
    """Prometheus name -> labels of every metric, as the collector's exporter names them."""
    core = Core.new()
    core.adopt(RuleDecider(), version=3)
    view = NodeView(
        node="n1",
        boot_id="boot",
        services=frozenset({"payments"}),
        members=(),
        state=core.state,
        pipeline=core.pipeline,
        alarms=Alarms(),
        clock=core.clock,
    )
    reader = InMemoryMetricReader()
    telemetry = Telemetry(view, TracerProvider(), MeterProvider(metric_readers=[reader]))
    handle, _ = telemetry.begin(attempt(), ())
    telemetry.decided(
        handle, Decision("d", True, Reason.PASSED_UNGOVERNED, 1, 3, (), would_deny=Reason.NO_POLICY_PERMITS)
    )
    telemetry.end(handle, "OK")
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[str, frozenset[str]] = {}
    for metric in (m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics):
        name = metric.name.replace(".", "_") + _UNITS.get(metric.unit or "", "")
        points: list[Any] = list(metric.data.data_points)
        labels = frozenset(key.replace(".", "_") for point in points for key in point.attributes)
        endings = {Sum: ("_total",), Histogram: ("_bucket", "_count", "_sum"), Gauge: ("",)}[
            type(metric.data)
        ]
        found |= {name + ending: labels | RESOURCE for ending in endings}
    yield found
    telemetry.shutdown()


def expressions(dashboard: str) -> list[str]:
    """Every query of a dashboard."""
    data = json.loads((FOLDER / dashboard).read_text())
    return [target["expr"] for panel in data["panels"] for target in panel["targets"]] + [
        variable["definition"] for variable in data.get("templating", {}).get("list", [])
    ]


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_every_metric_of_a_dashboard_exists_with_its_labels(
    dashboard: str, exported: dict[str, frozenset[str]]
) -> None:
    """A renamed metric leaves an empty panel, which looks like peace."""
    queries = expressions(dashboard)
    assert len(queries) > 5
    for query in queries:
        bare = re.sub(r'"[^"]*"', '""', query)
        metrics = set(_METRIC.findall(_BY.sub("", _SELECTOR.sub("{}", bare.replace(", egm_", ", label_")))))
        assert metrics, query
        assert metrics <= set(exported), (query, sorted(metrics - set(exported)))
        known = frozenset.intersection(*(exported[name] for name in metrics))
        used = {label for part in _SELECTOR.findall(bare) for label in _LABEL.findall(part)}
        used |= {label.strip() for part in _BY.findall(bare) for label in part.split(",")}
        assert used <= known, (query, sorted(used - known))


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_panels_have_titles_places_and_the_datasource_that_is_provisioned(dashboard: str) -> None:
    """Grafana shows a panel without them as an error."""
    data = json.loads((FOLDER / dashboard).read_text())
    provisioned = (FOLDER.parent / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    places = []
    for panel in data["panels"]:
        assert panel["title"]
        assert f"uid: {panel['datasource']['uid']}" in provisioned
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        places.append((place["x"], place["y"]))
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in data["panels"]}) == len(data["panels"])


def test_each_dashboard_has_a_name_of_its_own() -> None:
    """Of two with one uid Grafana keeps one."""
    names = [json.loads((FOLDER / name).read_text())["uid"] for name in DASHBOARDS]
    assert len(set(names)) == len(names) >= 2
