"""Signed policies that go wrong, and callers that claim to be others, through two real sidecars."""

import pytest

from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.interop_service import SERVICE, UNARY, ask
from tests.support.sidecar_mesh import METHODS, Mesh
from trust.errors import Reason
from trust.policy.source import build


def policy(*rules: str) -> bytes:
    """Return a base bundle in which alice may call `echo`, and that holds `rules`."""
    permit = (
        f'@id("alice-may")\npermit(principal == Workload::"spiffe://{TRUST_DOMAIN}/workload/alice", '
        f'action in Action::"{SERVICE}", resource == Service::"echo");\n'
    )
    return build(
        {
            "bundle.yaml": (
                f"name: test\ndescription: t\ntrust_domain: {TRUST_DOMAIN}\nlevel: 4\nmetadata_keys: [x-amount]\n"
                f"services: {{echo: {{grpc_services: [{METHODS}]}}}}\n"
            ).encode(),
            "policies/p.cedar": "".join([permit, *rules]).encode(),
            "tests/t.yaml": b"[]\n",
        }
    )


async def test_forbid_that_fails_to_evaluate_refuses_the_call_on_the_wire(mesh: Mesh) -> None:
    """Cedar skips a forbid that errs and answers Allow; a caller who makes it err must not get through."""
    await mesh.publish(
        policy(
            '@id("broken")\nforbid(principal, action, resource == Service::"echo")\n'
            'when { context.metadata has "x-amount" && context.node.level * 9223372036854775807 > 5 };\n'
        )
    )
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)

        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) == b"\0"
        reached = len(mesh.echo.metadata)
        broken = await sidecars.unary(a.outbound, UNARY, ask(size=1), metadata=(("x-amount", "1"),))
        assert broken is Reason.POLICY_ERROR
        assert len(mesh.echo.metadata) == reached


@pytest.mark.parametrize(
    "key", ["x-spiffe-id", "x-forwarded-client-cert", "authorization", "egm-caller", "x-forwarded-for"]
)
async def test_identity_header_of_another_workload_gives_its_rights_to_nobody(mesh: Mesh, key: str) -> None:
    """bob, who may nothing, says that he is alice, who may."""
    await mesh.publish(policy())
    alice = f"spiffe://{TRUST_DOMAIN}/workload/alice"
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"], "bob")) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        refused = await sidecars.unary(a.outbound, UNARY, ask(size=1), metadata=((key, alice),))
        assert refused is Reason.NO_POLICY_PERMITS
        assert mesh.echo.metadata == []
