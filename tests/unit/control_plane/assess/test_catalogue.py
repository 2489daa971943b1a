"""The catalogue has every characteristic of the model, and a damaged file is refused with its place."""

from pathlib import Path

import pytest
import yaml

from control_plane.assess import catalogue as module
from control_plane.assess.catalogue import load_catalogue, parse_catalogue
from control_plane.assess.report_text import catalogue_page
from trust.errors import InputError

FILE = Path(module.__file__).with_name("catalogue.yaml")
# The model's own words, level by level.
MODEL = {
    0: "implicit execution trust; minimal policy enforcement; limited execution visibility; reactive operational "
    "models; unrestricted runtime activity; inconsistent authorization controls",
    1: "centralized logging; runtime monitoring; telemetry systems; alerting frameworks; execution analytics; "
    "operational dashboards",
    2: "anomaly detection; behavioral monitoring; threat detection; post-execution review; runtime observation "
    "systems; incident response automation",
    3: "runtime policy validation; execution restrictions; authorization workflows; policy-aware orchestration; "
    "conditional runtime controls; governance enforcement systems",
    4: "pre-execution authorization; runtime identity validation; deterministic policy enforcement; authorization "
    "services; verification systems; fail-closed enforcement; governance-aware runtime architecture",
    5: "cryptographic authorization artifacts; evidence-grade verification; immutable audit persistence; execution "
    "lineage systems; runtime trust architecture; governance mesh enforcement; cryptographic runtime attribution; "
    "distributed trust validation",
}


@pytest.mark.parametrize("level", sorted(MODEL))
def test_every_characteristic_of_the_model_is_there_in_its_order(level: int) -> None:
    """A characteristic that is left out would be granted to everybody."""
    found = [one.name for one in load_catalogue().of_level(level)]

    assert found == MODEL[level].split("; ")


def test_the_page_in_the_docs_is_the_one_that_the_file_makes() -> None:
    """docs/egmm.md is generated: egm assess catalogue --markdown > docs/egmm.md."""
    page = Path("docs/egmm.md").read_text()

    assert page == catalogue_page(load_catalogue())


def test_every_characteristic_above_level_zero_says_how_to_get_there_and_maps_to_a_framework() -> None:
    """The roadmap and the mapping are made of these."""
    for one in load_catalogue().characteristics:
        assert one.maps
        assert (one.remedy is not None) is (one.level > 0)


def _changed(**changes: object) -> bytes:
    data = yaml.safe_load(FILE.read_bytes())
    data.update(changes)
    return yaml.safe_dump(data).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[", "catalogue.yaml"),
        (b"\xff\xfe\x00", "catalogue.yaml"),
        (b"format: 1", "sources"),
        (_changed(extra=1), "extra"),
        (_changed(format=2), "format"),
        (_changed(levels=[]), "levels 0 to 5"),
        (_changed(checks={}), "no such check"),
        (_changed(characteristics=[]), "no characteristic uses"),
        (_changed(sources={}), "without a source"),
    ],
    ids=["yaml", "bytes", "empty", "extra", "format", "levels", "checks", "characteristics", "sources"],
)
def test_a_damaged_catalogue_is_refused(data: bytes, said: str) -> None:
    """A catalogue that is read half would grade half."""
    with pytest.raises(InputError, match=said):
        parse_catalogue(data)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("id", "EGMM-L2-01", "not an id of level 0"),
        ("tests", [], "tests"),
        ("remedy", {"effort": 1, "does": "something", "commands": ["egm"]}, "levels 1 to 5"),
        ("maps", {"owasp_agentic": ["ASI11"]}, "no id of owasp_agentic"),
        ("maps", {"nobody": ["X"]}, "unknown framework"),
        ("maps", {"eu_ai_act": ["12"]}, "no id of eu_ai_act"),
    ],
)
def test_a_characteristic_that_contradicts_itself_is_refused(field: str, value: object, said: str) -> None:
    """Ids, tests and mappings are checked one by one."""
    data = yaml.safe_load(FILE.read_bytes())
    data["characteristics"][0][field] = value
    with pytest.raises(InputError, match=said):
        parse_catalogue(yaml.safe_dump(data).encode())
