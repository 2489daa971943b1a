"""Whether certificates that lead to the reader's CA vouch for the keys of the nodes (identity)."""

from cryptography.hazmat.primitives import serialization
from cryptography.x509 import Certificate

from trust import limits
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.evidence import NodePart
from trust.evidence_case import Case
from trust.evidence_report import Section
from trust.node_key import NodeKey, endorsement_times, verify_endorsement
from trust.note import Verifier
from trust.spiffe import SpiffeId
from trust.x509 import load_certificate, load_chain, to_pem


def check_identity(case: Case) -> None:
    """Identity: each node's key is vouched for by a certificate that leads to the CA."""
    try:
        anchors = case.believed = _anchors(case)
    except MeshError as error:
        case.wrong(Section.IDENTITY, "anchors", error)
        return
    for number, node in enumerate(case.evidence.nodes):
        where = f"nodes[{number}].endorsement"
        if node.endorsement is None:
            case.open(Section.IDENTITY, where, f"whose key signed for {node.name}: it has no endorsement")
            continue
        try:
            domain = case.trust_domain or Verifier.parse(node.key).name.partition("/")[0]
            key = _endorsed(case, node, anchors, domain)
        except StateError as error:
            case.wrong(Section.TIME, where, error)
            case.open(Section.IDENTITY, where, f"whose key signed for {node.name}: {error.detail}")
        except MeshError as error:
            case.wrong(Section.IDENTITY, where, error)
        else:
            case.keys[node.name] = key


def _anchors(case: Case) -> bytes:
    """Return the CA certificates to believe (PEM): the reader's; without any the file's."""
    certificates: list[Certificate] = []
    given = None if case.anchors_pem is None else _der_of(case.anchors_pem)
    for number, der in enumerate(case.evidence.anchors):
        certificate = load_certificate(der)
        if certificate.public_bytes(serialization.Encoding.DER) != der:
            raise EvidenceError(Reason.IDENTITY_INVALID, f"anchors[{number}] is not exactly one certificate")
        if given is not None and der not in given:
            what = f"anchors[{number}] is not among the CA certificates that you gave; give every CA that you trust"
            raise EvidenceError(Reason.IDENTITY_INVALID, what)
        certificates.append(certificate)
    if case.anchors_pem is None:
        case.open(
            Section.IDENTITY, "anchors", "whether this is the CA of the mesh: give its certificate with --ca"
        )
        return to_pem(certificates)
    return case.anchors_pem


def _der_of(pem: bytes) -> set[bytes]:
    return {c.public_bytes(serialization.Encoding.DER) for c in load_chain(pem)}


def _endorsed(case: Case, node: NodePart, anchors: bytes, domain: str) -> NodeKey:
    """Return the node's key as its endorsement gives it, verified at the times of the node's records."""
    data = node.endorsement or b""
    start_ms, end_ms = endorsement_times(data)
    walls = [r.wall_ms for (name, _), r in case.records.items() if name == node.name]
    times = (
        {min(max(wall, start_ms), end_ms - 1) for wall in (min(walls), max(walls))} if walls else {start_ms}
    )
    keys = [verify_endorsement(data, anchors, domain, now_ms) for now_ms in sorted(times)]
    key = keys[0]
    log = Verifier.parse(node.key)
    if key.public_key.public_bytes_raw() != log.public_key:
        raise EvidenceError(Reason.SIGNATURE_INVALID, "it vouches for another key than the log's")
    if key.node != SpiffeId.of(domain, "node", node.name) or log.name != f"{domain}/node/{node.name}":
        raise EvidenceError(Reason.IDENTITY_INVALID, f"it is of {key.node}, the log is {log.name}")
    skew = limits.MAX_CLOCK_SKEW_MS
    if walls and (min(walls) + skew < start_ms or max(walls) >= end_ms):
        what = "the endorsement is of another time than the records of the node"
        case.open(Section.TIME, f"execution of {node.name}", what)
    return key
