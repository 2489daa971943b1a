"""The second verifier's TUF: one policy of an evidence file, from the reader's root to the archives."""

import datetime
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature

from tests.support.second_verifier_base import b64, milliseconds, need, ordered, verify_tuf


@dataclass(frozen=True)
class Policy:
    """What the quorums signed: the base bundle, its version, and until when (Unix ms)."""

    digest: str
    version: int
    lease_ms: int
    expires_ms: int
    base: bytes  # the bundle


def policy_of(policy: dict[str, Any], root_json: bytes) -> Policy:
    """Verify one policy."""
    need(policy.keys() == {"roots", "timestamp", "snapshot", "roles"}, "members of a policy")
    need(isinstance(policy["roots"], list) and isinstance(policy["roles"], list), "lists of a policy")
    root = _root(policy["roots"], root_json)
    keys, roles = root["signed"]["keys"], root["signed"]["roles"]
    timestamp = _exact(b64(policy["timestamp"]))
    _quorum(timestamp, keys, roles["timestamp"])
    snapshot = _pinned(b64(policy["snapshot"]), timestamp["signed"]["meta"]["snapshot.json"])
    _quorum(snapshot, keys, roles["snapshot"])
    ordered([part["role"] for part in policy["roles"]])
    by_role = {part["role"]: part for part in policy["roles"]}
    meta = snapshot["signed"]["meta"]
    base = _pinned(b64(by_role["targets"]["metadata"]), meta["targets.json"])
    _quorum(base, keys, roles["targets"])
    _archive(by_role["targets"], base, "base.tar.gz")
    delegations = base["signed"].get("delegations") or {"keys": {}, "roles": []}
    published = {role["name"]: role for role in delegations["roles"] if f"{role['name']}.json" in meta}
    need(by_role.keys() == {"targets", *published}, "roles")
    files = [root, snapshot, base]
    for name, role in published.items():
        file = _pinned(b64(by_role[name]["metadata"]), meta[f"{name}.json"])
        _quorum(file, delegations["keys"], role)
        _archive(by_role[name], file, f"{name}/bundle.tar.gz")
        files.append(file)
    digest = base["signed"]["targets"]["base.tar.gz"]["hashes"]["sha256"]
    version = int(base["signed"]["version"])
    archive = b64(by_role["targets"]["archive"])
    return Policy(str(digest), version, _expires_ms(timestamp), min(map(_expires_ms, files)), archive)


def _root(encoded: list[str], root_json: bytes) -> dict[str, Any]:
    """The newest root that the reader's leads to; the reader's own when all in the file are earlier."""
    root: dict[str, Any] = json.loads(root_json)
    files = [b64(data) for data in encoded]
    exact = [_exact(data) for data in files]
    if root_json in files:
        exact = exact[files.index(root_json) + 1 :]
    elif not exact or exact[-1]["signed"]["version"] < root["signed"]["version"]:
        exact = []
    for following in exact:
        need(following["signed"]["version"] == root["signed"]["version"] + 1, "version of a root")
        for judge in (root["signed"], following["signed"]):
            _quorum(following, judge["keys"], judge["roles"]["root"])
        root = following
    return root


def _expires_ms(file: dict[str, Any]) -> int:
    text = file["signed"]["expires"]
    return milliseconds(datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC))


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
        try:
            good.add(verify_tuf(key, bytes.fromhex(found["sig"]), message))
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


def _archive(part: dict[str, Any], file: dict[str, Any], path: str) -> None:
    need(part.keys() == {"role", "metadata", "archive"}, "members of a role")
    target, data = file["signed"]["targets"][path], b64(part["archive"])
    need(len(data) == target["length"], "length of an archive")
    need(hashlib.sha256(data).hexdigest() == target["hashes"]["sha256"], "digest of an archive")
