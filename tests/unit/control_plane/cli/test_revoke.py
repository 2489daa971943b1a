"""What `egm revoke` says of a name that may be mistyped."""

import pytest

from control_plane.cli.revoke import unknown_name
from control_plane.edge.mesh_file import MeshFile, NodeEntry, WorkloadEntry
from trust.revocation import Kind, subject_of

BOOK = MeshFile(
    trust_domain="mesh.local",
    root="root.json",
    control_plane="127.0.0.1:1",
    nodes={"node-a": NodeEntry(admin="127.0.0.1:2", inbound={"shop": "127.0.0.1:3"})},
    workloads={"alice": WorkloadEntry()},
)


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (Kind.NODE, "node-a", ""),
        (Kind.NODE, "nod-a", "mesh.json knows no 'nod-a'; check the spelling. It knows node-a"),
        (Kind.WORKLOAD, "alice", ""),
        (Kind.WORKLOAD, "shop", ""),
        (Kind.WORKLOAD, "alcie", "mesh.json knows no 'alcie'; check the spelling. It knows alice, shop"),
        (Kind.THROTTLE, "alice 10/m", ""),
        (Kind.THROTTLE, "alcie 10/m", "mesh.json knows no 'alcie'; check the spelling. It knows alice, shop"),
        (Kind.METHOD, "shop.v1.Nope/Get", ""),
    ],
)
def test_a_name_that_the_address_book_does_not_know_is_told(kind: Kind, value: str, told: str) -> None:
    """Denying the wrong name in an emergency looks like success otherwise."""
    assert unknown_name(BOOK, subject_of(kind, value, "mesh.local")) == told
