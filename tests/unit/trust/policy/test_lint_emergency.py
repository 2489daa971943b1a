"""A mesh of one's own without an emergency key is warned about; folders that `egm up` completes are not."""

import pytest
import yaml

from tests.support.attestation import holders
from trust.policy.lint import lint
from trust.policy.problems import Severity

KEY = {"on-call": "11" * 32}


def warnings(level: int, *, witnesses: bool = True, keys: dict[str, str] | None = None) -> list[str]:
    """Return the words of warnings about emergency keys, of the folder."""
    source: dict[str, object] = {
        "name": "t",
        "description": "d",
        "trust_domain": "mesh.local",
        "level": level,
        "services": {"shop": {"grpc_services": ["shop.Orders"]}},
    }
    if witnesses:
        source["attestation"] = {
            "witnesses": {one.name: {"key": one.key.encode()} for one in holders("a", "b", "c")}
        }
    if keys is not None:
        source["emergency_keys"] = keys
    found = lint({"bundle.yaml": yaml.safe_dump(source).encode()})
    about = [problem for problem in found if "emergency key" in problem.message]
    assert all(problem.severity is Severity.WARNING for problem in about)
    return [f"{problem.file}: {problem.message}; {problem.hint}" for problem in about]


@pytest.mark.parametrize("level", [3, 4, 5])
def test_a_mesh_that_enforces_and_names_witnesses_needs_an_emergency_key(level: int) -> None:
    """The warning says what to do, and where the key goes."""
    (said,) = warnings(level)
    assert said.startswith("bundle.yaml: no emergency key")
    assert "egm keys new --purpose emergency" in said


def test_with_a_key_below_level_three_or_without_witnesses_nothing_is_said() -> None:
    """`egm up` puts the key of its domain into a folder that names none, as it does with witnesses."""
    assert warnings(5, keys=KEY) == []
    assert warnings(1) == []
    assert warnings(4, witnesses=False) == []
