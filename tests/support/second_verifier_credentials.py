"""The second verifier's trust credentials: who of a signed roster vouched for a node, and when."""

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.second_verifier_base import SKEW_MS, b64, b64url, need


@dataclass(frozen=True)
class Presented:
    """A permit: its claims, the key that signed it, and the base bundles that should name the witnesses."""

    claims: dict[str, Any]
    key: bytes
    meshes: tuple[
        dict[str, Any], ...
    ]  # mesh.json of the permit's policy, and of the callee's where that is another


def mesh_of(archive: bytes) -> dict[str, Any]:
    """Return mesh.json of a base bundle."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        file = opened.extractfile("mesh.json")
        assert file is not None
        mesh: dict[str, Any] = json.loads(file.read())
        return mesh


def check_credentials(credentials: list[bytes], presented: list[Presented]) -> None:
    """Verify the credential of every permit; each is named by one."""
    by_digest = {hashlib.sha256(data).digest(): data for data in credentials}
    named = set()
    for one in presented:
        first, *callees = [mesh.get("attestation") for mesh in one.meshes]
        need(("att" in one.claims) == (first is not None), "a permit with and a policy without witnesses")
        if first is None:
            need(not any(callees), "a permit without a credential where the callee's policy has witnesses")
            continue
        digest = b64url(one.claims["att"])
        named.add(digest)
        for mesh in one.meshes[: 1 + sum(callee is not None for callee in callees)]:
            node, key = _vouched(by_digest[digest], mesh, one.claims["iat"] * 1000)
            need((node, key) == (one.claims["iss"], one.key), "credential of another node or key")
    need(named == by_digest.keys(), "credentials are not those of permits")


def _vouched(data: bytes, mesh: dict[str, Any], at_ms: int) -> tuple[str, bytes]:
    """Verify a credential under the roster of a policy; return node and key."""
    value = json.loads(data.decode("ascii"))
    need(json.dumps(value, separators=(",", ":")).encode() == data, "encoding of a credential")
    need(list(value) == ["evidence", "attested", "logged"], "members of a credential")
    roster, domain = mesh["attestation"], mesh["trust_domain"]
    said, digest = _statement(value["evidence"])
    node, key = said["sub"], b64url(said["cnf"]["jwk"]["x"])
    prefix = f"spiffe://{domain}/node/"
    need(node.startswith(prefix), "node of a credential")
    witnesses = {name: _key(one["key"]) for name, one in roster["witnesses"].items()}
    outside = {name: _key(one["key"]) for name, one in (roster.get("log_witnesses") or {}).items()}
    pinned = witnesses.get(node.removeprefix(prefix))
    need(pinned is None or pinned[1] == key, "pinned key")
    gone = {(one["kind"], one["value"]) for one in mesh.get("revocations", ())}

    def counts(name: str, public_key: bytes) -> bool:
        spki = hashlib.sha256(bytes.fromhex("302a300506032b6570032100") + public_key).hexdigest()
        node = ("node", name) if name in witnesses else None
        return node not in gone and ("key", spki) not in gone

    counting = {name: one for name, one in witnesses.items() if counts(name, one[1])}
    text = f"egm-attestation/v1\n{node}\n{base64.b64encode(digest).decode()}\n"
    attested = _times(
        value["attested"], text, counting, b"\xffegm-attestation/v1", "egm-attestation-cosignature/v1"
    )
    logged = _logged(said["checkpoint"], value["logged"], node, key, witnesses | outside)
    needed = roster.get("quorum")
    _quorum(attested, len(witnesses) // 2 + 1 if needed is None else needed, roster, at_ms)
    counted = [
        (name, time_s) for name, time_s in logged if name in outside and counts(name, outside[name][1])
    ]
    _quorum(counted, roster.get("log_quorum", 0), roster, at_ms)
    return node, key


def _quorum(times: list[tuple[str, int]], needed: int, roster: dict[str, Any], at_ms: int) -> None:
    ttl_ms = roster.get("ttl_s", 60) * 1000
    need(len({name for name, _ in times}) == len(times), "a witness twice")

    def alive(now_ms: int) -> int:
        return sum(now_ms - ttl_ms < time_s * 1000 <= now_ms + SKEW_MS for _, time_s in times)

    need(max(alive(at_ms), alive(at_ms - SKEW_MS)) >= needed, "quorum of witnesses")


def _statement(envelope: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    need(list(envelope) == ["payload", "payloadType", "signatures"], "members of an envelope")
    kind, payload = envelope["payloadType"], b64(envelope["payload"])
    need(kind == "application/vnd.in-toto+json", "type of a payload")
    statement = json.loads(payload.decode("ascii"))
    need(json.dumps(statement, separators=(",", ":")).encode() == payload, "encoding of a statement")
    need(statement["predicateType"] == "urn:egm:attestation:v1", "type of a statement")
    said: dict[str, Any] = statement["predicate"]
    (signature,) = envelope["signatures"]
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    key = Ed25519PublicKey.from_public_bytes(b64url(said["cnf"]["jwk"]["x"]))
    key.verify(b64(signature["sig"]), message)
    return said, hashlib.sha256(payload).digest()


def _logged(
    note: str, lines: str, node: str, key: bytes, cosigners: dict[str, tuple[str, bytes]]
) -> list[tuple[str, int]]:
    origin = node.removeprefix("spiffe://")
    text, gap, own = note.rpartition("\n\n")
    need(gap and text.split("\n")[0] == origin, "origin of a checkpoint")
    text += "\n"
    expected = hashlib.sha256(origin.encode() + b"\n\1" + key).digest()[:4]
    signed = [raw for name, raw in _lines(own) if (name, raw[:4]) == (origin, expected)]
    need(len(signed) == 1, "signature of a checkpoint")
    Ed25519PublicKey.from_public_bytes(key).verify(signed[0][4:], text.encode())
    return _times(lines, text, cosigners, b"\4", "cosignature/v1")


def _times(
    lines: str, text: str, keys: dict[str, tuple[str, bytes]], kind: bytes, header: str
) -> list[tuple[str, int]]:
    split = lines.splitlines(keepends=True)
    need(split == sorted(set(split)), "order of signature lines")
    labels = {
        (name, hashlib.sha256(name.encode() + b"\n" + kind + key).digest()[:4]): (witness, key)
        for witness, (name, key) in keys.items()
    }
    found = []
    for name, raw in _lines(lines):
        if (name, raw[:4]) not in labels:
            continue
        witness, key = labels[name, raw[:4]]
        time_s = int.from_bytes(raw[4:12], "big")
        message = f"{header}\ntime {time_s}\n{text}".encode()
        Ed25519PublicKey.from_public_bytes(key).verify(raw[12:], message)
        found.append((witness, time_s))
    return found


def _lines(text: str) -> Iterator[tuple[str, bytes]]:
    for line in text.splitlines():
        dash, name, value = line.split(" ")
        need(dash == "—", "signature line")
        yield name, b64(value)


def _key(text: str) -> tuple[str, bytes]:
    name, _, key = text.split("+", 2)
    kind_and_key = b64(key)
    need(kind_and_key[0] == 4 and len(kind_and_key) == 33, "kind of key of a witness")
    return name, kind_and_key[1:]
