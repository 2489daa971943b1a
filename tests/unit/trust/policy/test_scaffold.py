"""The first folder that a user sees has nothing wrong with it."""

import pytest

from tests.support.engines import descriptors
from trust.bundle import read_bundle
from trust.errors import EvidenceError
from trust.policy.casetests import run_tests
from trust.policy.lint import lint
from trust.policy.problems import Severity
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


def test_what_the_scaffold_offers_in_comments_is_right_when_it_is_taken() -> None:
    """Health checks and reflection: uncomment, add the services, done."""
    files = scaffold(service="example", descriptors=descriptors())
    lines = files["policies/example.cedar"].decode().splitlines(keepends=True)
    begin = lines.index('// @id("callers-may-look-at-example")\n')
    end = next(i for i in range(begin, len(lines)) if lines[i].startswith("// );")) + 1
    lines[begin:end] = [line.removeprefix("// ") for line in lines[begin:end]]
    settings = files["bundle.yaml"].decode()
    health, reflection = "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"
    added = settings.replace("grpc_services: [", f'grpc_services: ["{health}", "{reflection}", ')
    assert added != settings
    policies = {"policies/example.cedar": "".join(lines).encode(), "bundle.yaml": added.encode()}
    problems = lint(files | policies)
    assert [p.severity for p in problems] == [Severity.WARNING]  # no test names it yet
    assert "callers-may-look-at-example" in problems[0].message


def test_a_scaffold_without_descriptors_offers_nothing_that_it_permits_already() -> None:
    """There the policy covers every method."""
    assert b"callers-may-look-at" not in scaffold()["policies/example.cedar"]
