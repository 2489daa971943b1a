"""Whether anybody could stop something at once: a warning for a mesh of one's own in which nobody could.

A folder as `egm policy new` writes it names neither witnesses nor emergency keys: `egm up` puts both in. One that names
its witnesses is of a mesh that somebody else keeps, who has to name the key as well.
"""

from trust.levels import POLICY_AWARE
from trust.mesh import MeshSettings


def emergency_problems(mesh: MeshSettings) -> list[tuple[tuple[str, ...], str, str]]:
    """Return (where in bundle.yaml, what, what to do) when a mesh with witnesses and level 3 or above has no key."""
    if mesh.emergency_keys or mesh.attestation is None or max(mesh.levels()) < POLICY_AWARE:
        return []
    return [
        (
            ("level",),
            "no emergency key: a stolen workload or a bad node can be stopped only by a policy that the quorum signs",
            "egm keys new --purpose emergency, and name its public key under emergency_keys (docs/operations.md)",
        )
    ]
