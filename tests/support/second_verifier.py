"""A second verifier of evidence files, written from docs/evidence.md: standard library and `cryptography` only.

It checks everything that the page says: encoding, records, proofs, checkpoints, permits, endorsements up to the CA,
policy quorums, and times. It raises `Refused` at the first thing that is wrong or missing; what `egm evidence verify`
calls open is refused here, too.
"""

import hashlib
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.support.second_verifier_base import SKEW_MS, Refused, b64, b64url, milliseconds, need, ordered
from tests.support.second_verifier_credentials import Presented, check_credentials, mesh_of
from tests.support.second_verifier_links import check_links
from tests.support.second_verifier_records import record_of
from tests.support.second_verifier_tuf import Policy, policy_of

__all__ = ["Refused", "check"]

MEMBERS = {
    "format",
    "contents",
    "nodes",
    "records",
    "policies",
    "anchors",
    "endorsements",
    "credentials",
    "links",
}
Records = dict[tuple[str, int], dict[str, Any]]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # fromhex takes capitals and spaces too


@dataclass(frozen=True)
class Voucher:
    """An endorsement whose signature and chain verify: of whom, which key, and from when to when (Unix ms)."""

    subject: str
    key: bytes
    start_ms: int
    end_ms: int


def check(data: bytes, root_json: bytes, ca_pem: bytes) -> None:
    """Verify a file; anything unexpected in it is a refusal, too."""
    try:
        _check(data, root_json, ca_pem)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        RecursionError,
        StopIteration,
    ) as error:
        raise Refused(f"malformed: {error!r}") from None
    except tarfile.TarError:
        raise Refused("a bundle cannot be read") from None
    except InvalidSignature:
        raise Refused("a signature does not verify") from None


def _check(data: bytes, root_json: bytes, ca_pem: bytes) -> None:
    document = json.loads(data.decode("ascii"))
    spelled = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    need(spelled == data and document.keys() == MEMBERS, "encoding")
    need(document["format"] == "egm-evidence/4", "format")
    need(all(isinstance(document[name], list) for name in MEMBERS - {"format"}), "lists")
    ordered([(c["execution"], c["node"], _side(c["side"])) for c in document["contents"]])
    ordered([n["name"] for n in document["nodes"]])
    ordered([(r["node"], r["index"]) for r in document["records"]])
    ordered([b64(a) for a in document["anchors"]])
    ordered([b64(e) for e in document["endorsements"]])
    credentials = [b64(c) for c in document["credentials"]]
    ordered(credentials)
    vouchers = _vouchers(document, ca_pem)
    trees = {n["name"]: _node(n, vouchers) for n in document["nodes"]}
    records = {(r["node"], r["index"]): record_of(r, *trees[r["node"]]) for r in document["records"]}
    need({node for node, _ in records} == trees.keys(), "a node without records")
    _endorsed_then(document["nodes"], records, vouchers)
    _contents(document["contents"], records)
    named, kids = _permits(records, vouchers)
    own = {_kid(b64(n["endorsement"])) for n in document["nodes"]}
    need(
        {_kid(b64(e)) for e in document["endorsements"]} == kids - own,
        "endorsements are not those of permits",
    )
    ordered(
        [next(b64(r["metadata"]) for r in p["roles"] if r["role"] == "targets") for p in document["policies"]]
    )
    policies = [policy_of(p, root_json) for p in document["policies"]]
    named |= {(i["digest"], i["version"]) for i in records.values() if i["kind"] == "intent" and i["digest"]}
    signed = {(p.digest, p.version): p for p in policies}
    need(named == signed.keys() and len(policies) == len(signed), "policies are not those of the records")
    check_credentials(credentials, list(_presented(records, vouchers, {p.digest: p for p in policies})))
    check_links(credentials, document["links"], trees)
    _times(document["contents"], records, signed)


def _side(name: str) -> int:
    return {"outbound": 1, "inbound": 2}[name]


def _kid(endorsement: bytes) -> bytes:
    return hashlib.sha256(endorsement).digest()


def _contents(contents: list[dict[str, Any]], records: Records) -> None:
    need(contents, "empty")
    used = set()
    for c in contents:
        need(c.keys() == {"execution", "node", "side", "intent", "outcome"}, "members of contents")
        need(type(c["intent"]) is int and type(c["outcome"]) in {int, type(None)}, "indexes of contents")
        need(_UUID.fullmatch(c["execution"]) is not None, "the spelling of an execution")
        whose = (bytes.fromhex(c["execution"].replace("-", "")), _side(c["side"]))
        intent = records[c["node"], c["intent"]]
        need((intent["kind"], intent["id"], intent["side"]) == ("intent", *whose), "intent of contents")
        used.add((c["node"], c["intent"]))
        if c["outcome"] is None:
            need(not intent["allowed"], "no outcome")
            continue
        outcome = records[c["node"], c["outcome"]]
        need((outcome["kind"], outcome["id"], outcome["side"]) == ("outcome", *whose), "outcome of contents")
        used.add((c["node"], c["outcome"]))
    need(used == records.keys(), "contents are not those of the records")


# nodes: C2SP signed note, endorsement, certificate chain


def _node(node: dict[str, Any], vouchers: dict[bytes, Voucher]) -> tuple[int, bytes]:
    need(node.keys() == {"name", "key", "checkpoint", "endorsement"}, "members of a node")
    origin, key_id, key = node["key"].split("+", 2)
    kind_and_key = b64(key)
    need(kind_and_key[0] == 1 and len(kind_and_key) == 33, "kind of key")
    need(hashlib.sha256(origin.encode() + b"\n" + kind_and_key).hexdigest()[:8] == key_id, "key id")
    domain, _, name = origin.partition("/node/")
    need(name == node["name"], "name of the log")
    text, gap, lines = b64(node["checkpoint"]).decode().rpartition("\n\n")
    need(gap and lines.endswith("\n"), "note")
    signed = False
    for line in lines[:-1].split("\n"):
        dash, by, value = line.split(" ")
        raw = b64(value)
        need(dash == "—", "signature line")
        if by == origin and raw[:4].hex() == key_id:
            Ed25519PublicKey.from_public_bytes(kind_and_key[1:]).verify(raw[4:], (text + "\n").encode())
            signed = True
    need(signed, "checkpoint is not signed by the log")
    of, size, root = text.split("\n")[:3]
    need(of == origin and str(int(size)) == size, "checkpoint")
    voucher = vouchers[_kid(b64(node["endorsement"]))]
    need(voucher.subject == f"spiffe://{domain}/node/{name}", "endorsement of another node")
    need(voucher.key == kind_and_key[1:], "endorsement of another key")
    return int(size), b64(root)


def _vouchers(document: dict[str, Any], ca_pem: bytes) -> dict[bytes, Voucher]:
    encoded = [node["endorsement"] for node in document["nodes"]] + document["endorsements"]
    return {_kid(b64(e)): _endorsement(b64(e), document["anchors"], ca_pem) for e in encoded}


def _endorsement(token: bytes, anchors: list[str], ca_pem: bytes) -> Voucher:
    head, body, signature = token.decode("ascii").split(".")
    header, claims = json.loads(b64url(head)), json.loads(b64url(body))
    need(header.keys() == {"alg", "typ", "x5c"} and header["typ"] == "egm-node-key+jwt", "header")
    need(claims.keys() == {"sub", "jwk", "iat", "exp"}, "claims of an endorsement")
    chain = [x509.load_der_x509_certificate(b64(c)) for c in header["x5c"]]
    given = x509.load_pem_x509_certificates(ca_pem)
    known = {c.public_bytes(serialization.Encoding.DER) for c in given}
    need(anchors and all(b64(a) in known for a in anchors), "anchors")
    for child, parent in itertools.pairwise(chain):
        child.verify_directly_issued_by(parent)
    issuers = [c for c in given if c.subject == chain[-1].issuer]
    need(issuers, "issuer")
    chain[-1].verify_directly_issued_by(issuers[0])
    _verify_jws(chain[0].public_key(), header["alg"], f"{head}.{body}".encode(), b64url(signature))
    names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    need(names.get_values_for_type(x509.UniformResourceIdentifier) == [claims["sub"]], "subject")
    need(claims["jwk"].keys() == {"kty", "crv", "x"} and claims["jwk"]["crv"] == "Ed25519", "key")
    need(0 < claims["exp"] - claims["iat"] <= 24 * 3600, "life of an endorsement")
    all_of = [*chain, issuers[0]]
    start = max(claims["iat"] * 1000, *(milliseconds(c.not_valid_before_utc) for c in all_of))
    end = min(claims["exp"] * 1000, *(milliseconds(c.not_valid_after_utc) for c in all_of))
    return Voucher(str(claims["sub"]), b64url(claims["jwk"]["x"]), start, end)


def _verify_jws(key: object, algorithm: str, message: bytes, raw: bytes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        half = key.key_size // 8
        need(len(raw) == 2 * half and algorithm == f"ES{key.key_size}", "algorithm")
        r, s = int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        digest = hashes.SHA256() if half == 32 else hashes.SHA384()
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
        return
    need(isinstance(key, rsa.RSAPublicKey) and algorithm == "RS256", "algorithm")
    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(raw, message, padding.PKCS1v15(), hashes.SHA256())


# permits


def _permits(records: Records, vouchers: dict[bytes, Voucher]) -> tuple[set[tuple[str, int]], set[bytes]]:
    """Verify every permit; return the policies and the key ids that they name."""
    intents = [record for record in records.values() if record["kind"] == "intent"]
    callers = {intent["id"]: intent["node"] for intent in intents if intent["side"] == 1}
    claims_of: dict[bytes, dict[str, Any]] = {}
    permit_of: dict[bytes, bytes] = {}
    policies, kids = set(), set()
    for intent in intents:
        if not intent["permit"]:
            need(not intent["sha256"] and not (intent["allowed"] and intent["level"] >= 5), "no permit")
            continue
        need(
            permit_of.setdefault(intent["id"], intent["sha256"]) == intent["sha256"],
            "two permits of one call",
        )
        kid, claims = _permit(intent, vouchers)
        need(
            intent["id"] not in callers or claims["iss"].endswith(f"/node/{callers[intent['id']]}"),
            "minting node",
        )
        policy = b64url(claims["bnd"]["d"]).hex(), claims["bnd"]["v"]
        need(intent["side"] == 2 or policy == (intent["digest"], intent["version"]), "bnd")
        claims_of[intent["sha256"]] = claims
        policies.add(policy)
        kids.add(kid)
    for claims in claims_of.values():
        above = claims_of.get(b64url(claims["parent"])) if "parent" in claims else None
        need(above is None or (above["txn"], above["aud"]) == (claims["txn"], claims["sub"]), "parent permit")
    return policies, kids


def _permit(intent: dict[str, Any], vouchers: dict[bytes, Voucher]) -> tuple[bytes, dict[str, Any]]:
    need(hashlib.sha256(intent["permit"]).digest() == intent["sha256"], "permit of another digest")
    head, body, signature = intent["permit"].decode("ascii").split(".")
    header, claims = json.loads(b64url(head)), json.loads(b64url(body))
    exact = '{"alg":"EdDSA","typ":"egm-permit+jwt","kid":"' + header["kid"] + '"}'
    need(b64url(head).decode() == exact, "header of a permit")
    voucher = vouchers[b64url(header["kid"])]
    Ed25519PublicKey.from_public_bytes(voucher.key).verify(b64url(signature), f"{head}.{body}".encode())
    need(claims["iss"] == voucher.subject, "issuer")
    recorded = {"eid": intent["id"], "txn": intent["root"], "parent": intent["parent_permit"]}
    said = {
        "eid": _uuid(claims["eid"]),
        "txn": _uuid(claims["txn"]),
        "parent": b64url(claims.get("parent", "")),
    }
    need(said == recorded, "ids of a permit")
    parties = {"sub": intent["caller"], "aud": intent["callee"], "mth": intent["method"]}
    need(all(claims[name] == value for name, value in parties.items()), "sub, aud or mth")
    need("req" not in claims or b64url(claims["req"]) == intent["request"], "req")
    start, end = claims["iat"] * 1000, claims["exp"] * 1000
    need(0 < end - start <= 30_000, "life of a permit")
    need(start - SKEW_MS <= intent["wall"] < end + SKEW_MS, "time of a permit")
    need(voucher.start_ms - SKEW_MS <= start < voucher.end_ms, "permit outside of its endorsement")
    return b64url(header["kid"]), claims


def _presented(
    records: Records, vouchers: dict[bytes, Voucher], policies: dict[str, Policy]
) -> Iterator[Presented]:
    """Every permit again, with the policies whose witnesses should have vouched for its node."""
    meshes: dict[str, dict[str, Any]] = {}
    for intent in records.values():
        if intent["kind"] != "intent" or not intent["permit"]:
            continue
        head, body, _ = intent["permit"].decode("ascii").split(".")
        claims = json.loads(b64url(body))
        named = [b64url(claims["bnd"]["d"]).hex()]
        if intent["side"] == 2 and intent["allowed"] and intent["digest"]:
            named.append(intent["digest"])
        for digest in named:
            meshes.setdefault(digest, mesh_of(policies[digest].base))
        voucher = vouchers[b64url(json.loads(b64url(head))["kid"])]
        yield Presented(claims, voucher.key, tuple(meshes[digest] for digest in dict.fromkeys(named)))


def _uuid(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", ""))


# time


def _endorsed_then(nodes: list[dict[str, Any]], records: Records, vouchers: dict[bytes, Voucher]) -> None:
    for node in nodes:
        voucher = vouchers[_kid(b64(node["endorsement"]))]
        for (name, _), record in records.items():
            inside = voucher.start_ms - SKEW_MS <= record["wall"] < voucher.end_ms
            need(name != node["name"] or inside, "a record outside of the endorsement")


def _times(contents: list[dict[str, Any]], records: Records, policies: dict[tuple[str, int], Policy]) -> None:
    sides: dict[str, dict[int, int]] = {}
    for c in contents:
        intent = records[c["node"], c["intent"]]
        sides.setdefault(c["execution"], {})[intent["side"]] = intent["wall"]
        policy = policies.get((intent["digest"], intent["version"]))
        need(policy is None or intent["wall"] < min(policy.lease_ms, policy.expires_ms), "policy had ended")
        if c["outcome"] is None:
            continue
        outcome = records[c["node"], c["outcome"]]
        need(c["outcome"] > c["intent"], "outcome before intent")
        if outcome["boot"] == intent["boot"]:
            need(outcome["monotonic"] >= intent["monotonic"], "outcome before intent")
        else:
            need(outcome["wall"] + SKEW_MS >= intent["wall"], "outcome before intent")
    for walls in sides.values():
        need(len(walls) < 2 or walls[2] + SKEW_MS >= walls[1], "the callee's side before the caller's")
