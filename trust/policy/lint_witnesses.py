"""Whether the witnesses that a policy does not itself revoke can still make its quorum: a warning of the lint."""

from trust.mesh import MeshSettings


def witness_problems(mesh: MeshSettings) -> list[tuple[tuple[str, ...], str, str]]:
    """Return (where in bundle.yaml, what, what to do) when `revocations` strikes witnesses of the roster."""
    roster = mesh.roster()
    if roster is None or not roster.struck:
        return []
    names = ", ".join(sorted(roster.struck))
    mesh_nodes, parties = len(roster.counting), len(roster.log_counting)
    if mesh_nodes < roster.needed or parties < roster.log_needed:
        what = f"the word of {names} does not count (revocations): too few witnesses are left for the quorum, so that "
        what += "no node can be attested and level 5 refuses everything"
    else:
        what = f"the word of {names} does not count (revocations): {mesh_nodes} witnesses are left, {roster.needed} "
        what += f"must agree, so {roster.tolerates_lost} may be out of reach"
    return [(("attestation",), what, "name another witness in its place (docs/trust.md)")]
