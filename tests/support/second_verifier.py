"""A second verifier of evidence files, written from docs/evidence.md: standard library and `cryptography` only.

It checks integrity and signatures only: encoding, records, proofs, checkpoints, endorsements up to the CA, policy
quorums, and that records name the policy. It raises `Refused` at the first thing that is wrong or missing.
"""

import base64
import hashlib
import itertools
import json
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

MEMBERS = {"format", "contents", "nodes", "records", "policies", "anchors"}


class Refused(Exception):
    """The file does not prove what it says."""


def need(condition: object, what: str) -> None:
    """Refuse unless `condition`."""
    if not condition:
        raise Refused(what)


def check(data: bytes, root_json: bytes, ca_pem: bytes) -> None:
    """Verify a file; anything unexpected in it is a refusal, too."""
    try:
        _check(data, root_json, ca_pem)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise Refused(f"malformed: {error!r}") from None
    except InvalidSignature:
        raise Refused("a signature does not verify") from None


def _check(data: bytes, root_json: bytes, ca_pem: bytes) -> None:
    document = json.loads(data.decode("ascii"))
    spelled = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    need(spelled == data and document.keys() == MEMBERS, "encoding")
    need(document["format"] == "egm-evidence/1", "format")
    need(all(isinstance(document[name], list) for name in MEMBERS - {"format"}), "lists")
    _ordered([(c["execution"], c["node"], _side(c["side"])) for c in document["contents"]])
    _ordered([n["name"] for n in document["nodes"]])
    _ordered([(r["node"], r["index"]) for r in document["records"]])
    _ordered([_b64(a) for a in document["anchors"]])
    trees = {n["name"]: _node(n, document["anchors"], ca_pem) for n in document["nodes"]}
    records = {(r["node"], r["index"]): _record(r, *trees[r["node"]]) for r in document["records"]}
    need({node for node, _ in records} == trees.keys(), "a node without records")
    policies = [_policy(p, root_json) for p in document["policies"]]
    _contents(document["contents"], records)
    named = {(i["digest"], i["version"]) for kind, i in records.values() if kind == "intent" and i["digest"]}
    need(
        named == set(policies) and len(policies) == len(set(policies)),
        "policies are not those of the records",
    )


def _side(name: str) -> int:
    return {"outbound": 1, "inbound": 2}[name]


def _ordered(keys: list[Any]) -> None:
    need(all(a < b for a, b in itertools.pairwise(keys)), "order")


def _b64(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    need(data and base64.b64encode(data).decode() == text, "base64")
    return data


def _b64url(text: str) -> bytes:
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    need(base64.urlsafe_b64encode(data).rstrip(b"=").decode() == text, "base64url")
    return data


# records: protobuf, RFC 6962 leaves and proofs


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data: bytes) -> dict[int, Any]:
    """Field number to its last value: an integer, or bytes."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            found[tag >> 3], at = _varint(data, at)
        else:
            need(tag & 7 == 2, "wire type")
            size, at = _varint(data, at)
            need(at + size <= len(data), "truncated record")
            found[tag >> 3], at = data[at : at + size], at + size
    return found


def _record(part: dict[str, Any], size: int, root: bytes) -> tuple[str, dict[str, Any]]:
    need(part.keys() == {"node", "index", "record", "proof"}, "members of a record")
    need(isinstance(part["proof"], list), "proof")
    data = _b64(part["record"])
    leaf = hashlib.sha256(b"\0" + hashlib.sha256(data).digest()).digest()
    need(_root(leaf, part["index"], size, [_b64(h) for h in part["proof"]]) == root, "inclusion proof")
    outer = _fields(data)
    need(outer.get(1) == 1, "format of a record")
    if 2 in outer:
        f = _fields(outer[2])
        need(f[23].decode() == part["node"], "node of an intent")
        digest = f.get(14, b"").hex()
        values = {"id": f[1].hex(), "side": f[6], "allowed": f.get(17, 0), "version": f.get(13, 0)}
        return "intent", values | {"digest": digest}
    f = _fields(outer[3])
    need(f[12].decode() == part["node"], "node of an outcome")
    return "outcome", {"id": f[1].hex(), "side": f[2]}


def _root(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.3.2."""
    need(type(index) is int and 0 <= index < size, "index")
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        need(sn and len(p) == 32, "proof too long")
        if fn & 1 or fn == sn:
            r = hashlib.sha256(b"\1" + p + r).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = hashlib.sha256(b"\1" + r + p).digest()
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0, "proof too short")
    return r


def _contents(contents: list[dict[str, Any]], records: dict[tuple[str, int], tuple[str, Any]]) -> None:
    need(contents, "empty")
    used = set()
    for c in contents:
        need(c.keys() == {"execution", "node", "side", "intent", "outcome"}, "members of contents")
        need(type(c["intent"]) is int and type(c["outcome"]) in {int, type(None)}, "indexes of contents")
        whose = (c["execution"].replace("-", ""), _side(c["side"]))
        kind, intent = records[c["node"], c["intent"]]
        need(kind == "intent" and (intent["id"], intent["side"]) == whose, "intent of contents")
        used.add((c["node"], c["intent"]))
        if c["outcome"] is None:
            need(not intent["allowed"], "no outcome")
            continue
        kind, outcome = records[c["node"], c["outcome"]]
        need(kind == "outcome" and (outcome["id"], outcome["side"]) == whose, "outcome of contents")
        used.add((c["node"], c["outcome"]))
    need(used == records.keys(), "contents are not those of the records")


# nodes: C2SP signed note, endorsement, certificate chain


def _node(node: dict[str, Any], anchors: list[str], ca_pem: bytes) -> tuple[int, bytes]:
    need(node.keys() == {"name", "key", "checkpoint", "endorsement"}, "members of a node")
    origin, key_id, key = node["key"].split("+", 2)
    kind_and_key = _b64(key)
    need(kind_and_key[0] == 1 and len(kind_and_key) == 33, "kind of key")
    need(hashlib.sha256(origin.encode() + b"\n" + kind_and_key).hexdigest()[:8] == key_id, "key id")
    domain, _, name = origin.partition("/node/")
    need(name == node["name"], "name of the log")
    text, gap, lines = _b64(node["checkpoint"]).decode().rpartition("\n\n")
    need(gap and lines.endswith("\n"), "note")
    signed = False
    for line in lines[:-1].split("\n"):
        dash, by, value = line.split(" ")
        raw = _b64(value)
        need(dash == "—", "signature line")
        if by == origin and raw[:4].hex() == key_id:
            Ed25519PublicKey.from_public_bytes(kind_and_key[1:]).verify(raw[4:], (text + "\n").encode())
            signed = True
    need(signed, "checkpoint is not signed by the log")
    of, size, root = text.split("\n")[:3]
    need(of == origin and str(int(size)) == size, "checkpoint")
    subject, public = _endorsement(_b64(node["endorsement"]), anchors, ca_pem)
    need(
        subject == f"spiffe://{domain}/node/{name}" and public == kind_and_key[1:],
        "endorsement of another key",
    )
    return int(size), _b64(root)


def _endorsement(token: bytes, anchors: list[str], ca_pem: bytes) -> tuple[str, bytes]:
    head, body, signature = token.decode("ascii").split(".")
    header, claims = json.loads(_b64url(head)), json.loads(_b64url(body))
    need(header["typ"] == "egm-node-key+jwt", "type")
    chain = [x509.load_der_x509_certificate(_b64(c)) for c in header["x5c"]]
    given = x509.load_pem_x509_certificates(ca_pem)
    known = {c.public_bytes(serialization.Encoding.DER) for c in given}
    need(anchors and all(_b64(a) in known for a in anchors), "anchors")
    for child, parent in itertools.pairwise(chain):
        child.verify_directly_issued_by(parent)
    issuers = [c for c in given if c.subject == chain[-1].issuer]
    need(issuers, "issuer")
    chain[-1].verify_directly_issued_by(issuers[0])
    key, raw, message = chain[0].public_key(), _b64url(signature), f"{head}.{body}".encode()
    if isinstance(key, ec.EllipticCurvePublicKey):
        half = key.key_size // 8
        need(len(raw) == 2 * half and header["alg"] == f"ES{key.key_size}", "algorithm")
        r, s = int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        digest = hashes.SHA256() if half == 32 else hashes.SHA384()
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
    else:
        need(isinstance(key, rsa.RSAPublicKey) and header["alg"] == "RS256", "algorithm")
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(raw, message, padding.PKCS1v15(), hashes.SHA256())
    names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    need(names.get_values_for_type(x509.UniformResourceIdentifier) == [claims["sub"]], "subject")
    return str(claims["sub"]), _b64url(claims["jwk"]["x"])


# policy: TUF


def _canonical(value: Any) -> str:
    """OLPC canonical JSON: what TUF signs."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return "{" + ",".join(f"{_canonical(k)}:{_canonical(value[k])}" for k in sorted(value)) + "}"


def _quorum(file: dict[str, Any], keys: dict[str, Any], role: dict[str, Any]) -> None:
    message = _canonical(file["signed"]).encode()
    good = set()
    for found in file["signatures"]:
        key = keys.get(found["keyid"])
        if key is None or found["keyid"] not in role["keyids"] or not found["sig"]:
            continue
        need(key["keytype"] == "ed25519", "this verifier knows Ed25519 only")
        try:
            public = bytes.fromhex(key["keyval"]["public"])
            Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(found["sig"]), message)
            good.add(public)
        except InvalidSignature:
            continue
    need(len(good) >= role["threshold"] >= 1, "quorum")


def _exact(data: bytes) -> dict[str, Any]:
    """Metadata that nothing pins: one of the two spellings of TUF's reference implementation."""
    file: dict[str, Any] = json.loads(data)
    loose = json.dumps(file, indent=1, separators=(",", ": "), sort_keys=True)
    tight = json.dumps(file, separators=(",", ":"), sort_keys=True)
    need(data in {loose.encode(), tight.encode()}, "spelling of metadata")
    return file


def _pinned(data: bytes, meta: dict[str, Any]) -> dict[str, Any]:
    need(len(data) == meta["length"], "length")
    need(hashlib.sha256(data).hexdigest() == meta["hashes"]["sha256"], "digest")
    file: dict[str, Any] = json.loads(data)
    need(file["signed"].get("version", meta.get("version")) == meta.get("version"), "version")
    return file


def _policy(policy: dict[str, Any], root_json: bytes) -> tuple[str, int]:
    """Return digest and version of the base bundle."""
    need(policy.keys() == {"roots", "timestamp", "snapshot", "roles"}, "members of a policy")
    need(isinstance(policy["roots"], list) and isinstance(policy["roles"], list), "lists of a policy")
    root = json.loads(root_json)
    files = [_b64(data) for data in policy["roots"]]
    for data in files[files.index(root_json) + 1 :] if root_json in files else files:
        following = _exact(data)
        need(following["signed"]["version"] == root["signed"]["version"] + 1, "version of a root")
        for judge in (root["signed"], following["signed"]):
            _quorum(following, judge["keys"], judge["roles"]["root"])
        root = following
    keys, roles = root["signed"]["keys"], root["signed"]["roles"]
    timestamp = _exact(_b64(policy["timestamp"]))
    _quorum(timestamp, keys, roles["timestamp"])
    snapshot = _pinned(_b64(policy["snapshot"]), timestamp["signed"]["meta"]["snapshot.json"])
    _quorum(snapshot, keys, roles["snapshot"])
    _ordered([part["role"] for part in policy["roles"]])
    by_role = {part["role"]: part for part in policy["roles"]}
    meta = snapshot["signed"]["meta"]
    base = _pinned(_b64(by_role["targets"]["metadata"]), meta["targets.json"])
    _quorum(base, keys, roles["targets"])
    _archive(by_role["targets"], base, "base.tar.gz")
    delegations = base["signed"].get("delegations") or {"keys": {}, "roles": []}
    published = {role["name"]: role for role in delegations["roles"] if f"{role['name']}.json" in meta}
    need(by_role.keys() == {"targets", *published}, "roles")
    for name, role in published.items():
        file = _pinned(_b64(by_role[name]["metadata"]), meta[f"{name}.json"])
        _quorum(file, delegations["keys"], role)
        _archive(by_role[name], file, f"{name}/bundle.tar.gz")
    digest = base["signed"]["targets"]["base.tar.gz"]["hashes"]["sha256"]
    return str(digest), int(base["signed"]["version"])


def _archive(part: dict[str, Any], file: dict[str, Any], path: str) -> None:
    need(part.keys() == {"role", "metadata", "archive"}, "members of a role")
    target, data = file["signed"]["targets"][path], _b64(part["archive"])
    need(len(data) == target["length"], "length of an archive")
    need(hashlib.sha256(data).hexdigest() == target["hashes"]["sha256"], "digest of an archive")
