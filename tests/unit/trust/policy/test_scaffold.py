"""The first folder that a user sees has nothing wrong with it."""

import pytest

from tests.support.engines import descriptors
from trust.bundle import read_bundle
from trust.errors import EvidenceError
from trust.policy.casetests import run_tests
from trust.policy.lint import lint
from trust.policy.scaffold import scaffold
from trust.policy.source import build


@pytest.mark.parametrize("data", [None, descriptors()], ids=["bare", "described"])
@pytest.mark.parametrize("service", ["example", "payments-2"])
def test_scaffolded_folder_passes_its_own_lint_and_tests(data: bytes | None, service: str) -> None:
    """With and without descriptors; not even a warning."""
    files = scaffold(service=service, descriptors=data, trust_domain="corp.example", caller="bob")
    assert lint(files) == []
    results = run_tests(read_bundle(build(files), role="targets"))
    assert [r.passed for r in results] == [True, True]
    assert results[0].verdict is not None
    assert results[0].verdict.policies == (f"callers-may-call-{service}",)


@pytest.mark.parametrize(
    "bad", [{"service": "Not"}, {"caller": ""}, {"trust_domain": "A"}, {"descriptors": b"\xff"}]
)
def test_names_that_cannot_be_are_refused(bad: dict[str, object]) -> None:
    """Before anything is written."""
    with pytest.raises(EvidenceError):
        scaffold(**bad)  # type: ignore[arg-type]
