"""The threat model names tests; a test that was renamed or removed must not be claimed any more."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")


def test_every_test_that_the_threat_model_names_exists() -> None:
    """An attack is covered only while its test is there."""
    named = _NAMED.findall((ROOT / "docs" / "threat-model.md").read_text())
    assert len(named) > 15
    missing = [f"{file}::{name}" for file, name in named if f"def {name}" not in (ROOT / file).read_text()]
    assert missing == []
