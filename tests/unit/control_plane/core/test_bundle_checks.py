"""What the control plane lets approvers sign is what nodes can enforce."""

import pytest

from control_plane.core.bundle_checks import check_bundles
from tests.support.control_plane import TRUST_DOMAIN, archive, source
from trust.bundle import read_bundle
from trust.errors import InputError, MeshError, Reason
from trust.policy.engine import Engine
from trust.policy.lint import lint
from trust.policy.problems import errors_of
from trust.policy.self_test import check_forbidden
from trust.policy.source import archive_of, load
from trust.verified import BASE_ROLE

EVERYTHING = (
    "permit(principal, action, resource);",
    "permit(principal, action, resource) when { true };",
    "permit(principal is Workload, action, resource is Service) unless { context.node.level < 4 };",
    'permit(principal, action, resource) when { context.caller.authn == "mtls" };',
)
# A node's name or the hour must not decide whether a bundle activates: some nodes would, others would not.
NOT_EVERYWHERE = (
    'permit(principal, action, resource) when { context.node.name == "n1" };',
    "permit(principal, action, resource) when { context.time.hour < 6 };",
)


def bundle_with(policy: str) -> bytes:
    """Return an archive that no linter has seen."""
    parsed, problems = load(source() | {"policies/x.cedar": f'@id("x")\n{policy}\n'.encode()})
    assert parsed is not None, problems
    return archive_of(parsed)


@pytest.mark.parametrize("policy", EVERYTHING)
def test_bundle_that_every_node_would_refuse_cannot_be_proposed(policy: str) -> None:
    """A quorum must not be able to sign what the activation self-test refuses; lint says where and what to write."""
    data = bundle_with(policy)
    with pytest.raises(MeshError, match="BUNDLE_SELF_TEST_FAILED"):
        check_forbidden(Engine.build(read_bundle(data, role=BASE_ROLE), {}))
    with pytest.raises(InputError, match=r'x\.cedar:1: .*permits everything.*action in Action::"any"'):
        check_bundles(BASE_ROLE, data, {}, trust_domain=TRUST_DOMAIN)
    (problem,) = errors_of(lint(read_bundle(data, role=BASE_ROLE)))
    assert (problem.file, problem.line) == ("policies/x.cedar", 1)


@pytest.mark.parametrize("policy", NOT_EVERYWHERE)
def test_self_test_does_not_depend_on_node_or_hour(policy: str) -> None:
    """What activates here and now activates everywhere and at every restart."""
    data = bundle_with(policy)
    check_forbidden(Engine.build(read_bundle(data, role=BASE_ROLE), {}))
    check_bundles(BASE_ROLE, data, {}, trust_domain=TRUST_DOMAIN)


def test_bundle_of_another_trust_domain_cannot_be_proposed() -> None:
    """Every node would refuse its mesh.json."""
    with pytest.raises(MeshError, match=r"other\.mesh") as caught:
        check_bundles(BASE_ROLE, archive(trust_domain="other.mesh"), {}, trust_domain=TRUST_DOMAIN)
    assert caught.value.reason is Reason.BUNDLE_MALFORMED
