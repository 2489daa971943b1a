"""A first policy folder: small, complete, and passing its own lint and tests."""

import json
import re
from typing import Final

from trust.bundle import DESCRIPTORS
from trust.policy.descriptors import MethodTable
from trust.policy.source import SETTINGS
from trust.spiffe import check_name, check_trust_domain

_UNKNOWN_METHOD: Final = "example.v1.Example/Call"

_SETTINGS: Final = """\
# What this bundle is about. Check it with `egm policy lint .`, try it with `egm policy test .`.
name: {name}
description: Who may call {service}.
trust_domain: {trust_domain}

# 0 pass everything, 1 observe, 2 also refuse what is revoked or quarantined, 3 enforce where policy exists,
# 4 explicit allow or refuse, 5 also permits and proof
level: 4
# policy counts as fresh for ttl_s after each renewal, is enforced with an alarm for grace_s more, then all is refused
lease: {{ttl_s: 60, grace_s: 120}}

# each service: level, workload (who serves it), namespace (whose approvers rule it), grpc_services
services:
  {service}:
    grpc_services: {grpc_services}

# role -> workload names or SPIFFE IDs; policies say: principal in Role::"callers"
roles:
  callers: [{caller}]
"""
_POLICY: Final = """\
// Nothing is allowed unless a policy permits it; a forbid wins over every permit.

@id("callers-may-call-{service}")
permit(
  principal in Role::"callers",
  action{action},
  resource == Service::"{service}"
);

{look}// At level 5 the permit of a stream binds its opening message. A method whose service speaks before its caller
// needs @permit("method") after the @id of every policy that permits it.
"""
_LOOK: Final = """\
// Health checks and reflection through the mesh are calls like any other. To allow them, add grpc.health.v1.Health and
// grpc.reflection.v1.ServerReflection to grpc_services in bundle.yaml, and here:
//
// @id("callers-may-look-at-{service}")
// permit(
//   principal in Role::"callers",
//   action in [Action::"grpc.health.v1.Health", Action::"grpc.reflection.v1.ServerReflection"],
//   resource == Service::"{service}"
// );
//
"""
_TESTS: Final = """\
# Each case is one call and what must become of it. Add one for everything that you promise.
- name: a caller may call {service}
  caller: {caller}
  service: {service}
  method: {method}
  expect: allow
  policy: callers-may-call-{service}

- name: nobody else may call {service}
  caller: somebody-else
  service: {service}
  method: {method}
  expect: deny
"""


def scaffold(
    *,
    service: str = "example",
    descriptors: bytes | None = None,
    trust_domain: str = "mesh.local",
    caller: str = "alice",
) -> dict[str, bytes]:
    """Return a folder (path -> content) that lets one role call one service.

    Args:
        service: logical name of the service.
        descriptors: FileDescriptorSet of what it serves, or None.
        trust_domain: of the mesh.
        caller: workload in the role `callers`.

    Raises:
        EvidenceError: IDENTITY_INVALID for a bad name, BUNDLE_MALFORMED for bad descriptors.
    """
    check_name(service)
    check_name(caller)
    check_trust_domain(trust_domain)
    table = MethodTable.parse(descriptors)
    methods = [m for m in table.methods() if not m.startswith("grpc.")]
    grpc_services = sorted({method.partition("/")[0] for method in methods})
    values = {
        "name": f"{service}-policy",
        "service": service,
        "caller": caller,
        "trust_domain": trust_domain,
        "method": methods[0] if methods else _UNKNOWN_METHOD,
        "grpc_services": json.dumps(grpc_services),
        "action": _actions(grpc_services),
        "look": _LOOK.format(service=service) if grpc_services else "",  # otherwise every method is permitted
    }
    files = {
        SETTINGS: _SETTINGS.format(**values).encode(),
        f"policies/{service}.cedar": _POLICY.format(**values).encode(),
        f"tests/{service}.yaml": _TESTS.format(**values).encode(),
    }
    if descriptors is not None:
        files[DESCRIPTORS] = descriptors
    return files


def _actions(grpc_services: list[str]) -> str:
    """Return the action part of the scope: every method of the described services."""
    if not grpc_services:
        return ""
    names = ", ".join(f'Action::"{name}"' for name in grpc_services if re.match(r"[\w.]+\Z", name))
    return f" in [{names}]"
