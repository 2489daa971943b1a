"""A TUF repository of any shape, signed by whoever the test says, and served on loopback."""

import contextlib
import datetime as dt
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from tests.support.tuf_world import sign_raw, signer

TOP = ("root", "targets", "snapshot", "timestamp")


def in_days(days: float) -> dt.datetime:
    """Return a time from now, in whole seconds as TUF wants it."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).replace(microsecond=0)


class RawRepository:
    """Unsigned roles to edit, and `commit_*` to sign and serve them. It begins in a shape that our linter accepts."""

    def __init__(self) -> None:
        """Make keys (two of two for root and targets, one online key each) and publish version 1 of all."""
        self.signers = {role: [signer(f"{role}-{n}") for n in (1, 2)] for role in ("root", "targets")}
        self.signers |= {role: [signer(role)] for role in ("snapshot", "timestamp")}
        self.root = Root(
            version=1,
            expires=in_days(30),
            keys={s.public_key.keyid: s.public_key for list_ in self.signers.values() for s in list_},
            roles={
                role: Role([s.public_key.keyid for s in list_], len(list_))
                for role, list_ in self.signers.items()
            },
            consistent_snapshot=True,
        )
        self.bundle = b"bundle 1"
        self.targets = Targets(1, expires=in_days(30))
        self.delegated: dict[str, Targets] = {}
        self.snapshot = Snapshot(1, expires=in_days(30))
        self.timestamp = Timestamp(1, expires=in_days(0.5))
        for signed in (self.root, self.targets, self.snapshot, self.timestamp):
            signed.version = 0  # committing counts up
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.commit_root()
        self.commit()

    def set_role(self, role: str, keys: Sequence[CryptoSigner], threshold: int) -> None:
        """Replace who may sign for a top-level role; takes effect with `commit_root`."""
        for key_id in list(self.root.roles[role].keyids):
            self.root.revoke_key(key_id, role)
        for one in keys:
            self.root.add_key(one.public_key, role)
        self.root.roles[role].threshold = threshold

    def rotate(self, role: str) -> None:
        """Give a role fresh keys and publish the root that says so."""
        self.signers[role] = [signer(f"new {role}") for _ in self.signers[role]]
        self.set_role(role, self.signers[role], self.root.roles[role].threshold)
        self.commit_root()

    def delegate(self, delegator: str, name: str, paths: Sequence[str], files: Mapping[str, bytes]) -> None:
        """Delegate `paths` to a role of two keys that lists `files`; takes effect with `commit`."""
        self.signers[name] = [signer(f"{name}-1"), signer(f"{name}-2")]
        parent = self.targets if delegator == "targets" else self.delegated[delegator]
        if parent.delegations is None:
            parent.delegations = Delegations({}, {})
        assert parent.delegations.roles is not None
        parent.delegations.roles[name] = DelegatedRole(name, [], 2, True, list(paths))
        for one in self.signers[name]:
            parent.add_key(one.public_key, name)
        self.delegated[name] = Targets(1, expires=in_days(30))
        self.delegated[name].version = 0
        for path, data in files.items():
            self._list(self.delegated[name], path, data)

    def commit_root(self, signers: Sequence[CryptoSigner] | None = None) -> bytes:
        """Publish the next root."""
        self.root.version += 1
        data = self._sign(self.root, self.signers["root"] if signers is None else signers)
        self.files[f"metadata/{self.root.version}.root.json"] = data
        return data

    def commit(self, *, bump: Sequence[str] = TOP) -> None:
        """Sign targets, snapshot and timestamp again, so that they pin each other; versions rise for `bump`."""
        self._list(self.targets, "base.tar.gz", self.bundle)
        for name, role in {"targets": self.targets, **self.delegated}.items():
            role.version += name in bump or name in self.delegated
            data = self._sign(role, self.signers[name])
            self.files[f"metadata/{role.version}.{name}.json"] = data
            self.snapshot.meta[f"{name}.json"] = MetaFile.from_data(role.version, data, ["sha256"])
        self.snapshot.version += "snapshot" in bump
        data = self._sign(self.snapshot, self.signers["snapshot"])
        self.files[f"metadata/{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.commit_timestamp(bump="timestamp" in bump)

    def commit_timestamp(self, *, bump: bool = True) -> None:
        """Publish the timestamp as it is."""
        self.timestamp.version += bump
        self.files["metadata/timestamp.json"] = self._sign(self.timestamp, self.signers["timestamp"])

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Serve the files, as they are when asked for, and yield the base URL."""
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(self.path).removeprefix("/")
                repository.asked.append(path)
                data = repository.files.get(path)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, format: str, *args: Any) -> None:
                """Stay silent."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()

    def _list(self, role: Targets, path: str, data: bytes) -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        role.targets[path] = target
        folder, _, name = path.rpartition("/")
        hashed = f"{target.hashes['sha256']}.{name}"
        self.files["targets/" + (f"{folder}/{hashed}" if folder else hashed)] = data

    @staticmethod
    def _sign(signed: Any, signers: Sequence[CryptoSigner]) -> bytes:
        return sign_raw(Metadata(type(signed).from_dict(signed.to_dict())), signers)
