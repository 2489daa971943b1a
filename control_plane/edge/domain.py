"""A trust domain on disk: who holds which key, and the ceremony that makes the first root.

DIR/domain.json             trust domain, development or not, complete or waiting for signatures
DIR/root.json               TUF root: the trust anchor that every node is given
DIR/root.unsigned.json      while a ceremony waits for root signatures
DIR/keys/NAME.pub.json      public halves; in a development domain NAME.pem and `passphrase` too, and an
                            emergency key, which `bundle.yaml` must name before it counts
DIR/online/{snapshot,timestamp}.pem, passphrase     for the control plane alone
DIR/ca/                     the embedded certificate authority, for the control plane alone
"""

import json
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Root

from control_plane.edge.ca import create_ca
from trust.authoring import Holders, add_signature, new_root, parse_metadata, sign, signable_bytes
from trust.chain import verify_roots
from trust.edge.clock import SystemClock
from trust.edge.files import write_atomic
from trust.edge.keyfiles import (
    DEVELOPMENT_PASSPHRASE_FILE,
    create_key,
    load_public,
    load_signer,
    passphrase_source,
    write_public,
)
from trust.errors import EvidenceError, InputError, Reason
from trust.keys import key_name
from trust.metadata import ONLINE_ROLES, is_development, trust_domain_of
from trust.ports import Clock
from trust.quorum import Quorum, keys_of, quorum_of
from trust.repository import OnlineSigners
from trust.spiffe import check_name
from trust.verified import BASE_ROLE

DEFAULT_TRUST_DOMAIN: Final = "mesh.local"
EMERGENCY_KEY: Final = "emergency-1"  # of a development domain
_PASSPHRASE_BYTES: Final = 32
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Domain:
    """A trust domain directory, complete or not."""

    directory: Path
    trust_domain: str
    development: bool
    complete: bool

    @property
    def root_path(self) -> Path:
        """The trust anchor; exists once the domain is complete."""
        return self.directory / "root.json"

    @property
    def unsigned_root_path(self) -> Path:
        """The root that waits for signatures; exists during a ceremony."""
        return self.directory / "root.unsigned.json"

    @property
    def ca_directory(self) -> Path:
        """Where the embedded CA is."""
        return self.directory / "ca"

    @property
    def keys_directory(self) -> Path:
        """Where the public halves of root and approver keys are."""
        return self.directory / "keys"

    @property
    def online_directory(self) -> Path:
        """Where the control plane's own keys are."""
        return self.directory / "online"

    def root(self) -> Metadata[Root]:
        """Return the trust anchor, verified by its own quorum.

        Raises:
            InputError: NOT_FOUND, while signatures are missing.
            EvidenceError: QUORUM_NOT_MET, METADATA_INVALID or METADATA_UNSAFE.
        """
        try:
            data = self.root_path.read_bytes()
        except FileNotFoundError:
            raise InputError(
                Reason.NOT_FOUND,
                f"{self.root_path} does not exist yet; finish the ceremony: egm init {self.directory}",
            ) from None
        verify_roots(data, ())
        return parse_metadata(data, Root)

    def key_file(self, name: str) -> Path:
        """Return the private key file of a holder (in a development domain)."""
        return self.keys_directory / f"{name}.pem"

    def online_signers(self) -> OnlineSigners:
        """Open the control plane's own keys. Raises InputError KEY_UNREADABLE."""
        snapshot, timestamp = (self._online_signer(role) for role in ONLINE_ROLES)
        return OnlineSigners(snapshot=snapshot, timestamp=timestamp)

    def adopt_root(self, data: bytes) -> Metadata[Root]:
        """Replace the trust anchor by a later root that its quorum and its own have signed.

        Raises:
            EvidenceError: QUORUM_NOT_MET, METADATA_INVALID or METADATA_UNSAFE; nothing was changed.
        """
        verify_roots(self.root_path.read_bytes(), [data])
        write_atomic(self.root_path, data)
        return parse_metadata(data, Root)

    def _online_signer(self, role: str) -> Signer:
        path = self.online_directory / f"{role}.pem"
        return load_signer(str(path), passphrase_source(path))

    def _save(self, *, complete: bool) -> None:
        record = {
            "format": _FORMAT,
            "trust_domain": self.trust_domain,
            "development": self.development,
            "complete": complete,
        }
        text = json.dumps(record, indent=2, sort_keys=True)
        write_atomic(self.directory / "domain.json", text.encode() + b"\n")


def open_domain(path: Path) -> Domain:
    """Open the trust domain in the directory `path`.

    Raises:
        InputError: NOT_FOUND or INPUT_INVALID, saying how to make one.
    """
    file = path / "domain.json"
    try:
        record = json.loads(file.read_bytes())
        domain = Domain(path, record["trust_domain"], record["development"], record["complete"])
        if record["format"] != _FORMAT or not isinstance(domain.trust_domain, str):
            raise ValueError("unknown format")
    except FileNotFoundError:
        raise InputError(
            Reason.NOT_FOUND, f"{path} is not a trust domain; make one with: egm init {path}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(Reason.INPUT_INVALID, f"{file} is damaged; restore it from a backup") from None
    return domain


def create_development(
    directory: Path,
    *,
    trust_domain: str = DEFAULT_TRUST_DOMAIN,
    approvers: int = 3,
    threshold: int = 2,
    root_keys: int = 3,
    root_threshold: int = 2,
    clock: Clock | None = None,
) -> Domain:
    """Make a complete development domain in one go: every key on this machine, passphrases beside them.

    Either all of `directory` appears or nothing.

    Raises:
        InputError: CONFLICT, if `directory` exists and is not empty; INPUT_INVALID for bad numbers.
        EvidenceError: IDENTITY_INVALID or METADATA_UNSAFE.
    """
    now_ms = (clock or SystemClock()).now_ms()
    _check_counts(approvers, threshold, "approver")
    _check_counts(root_keys, root_threshold, "root")
    if directory.exists() and any(directory.iterdir()):
        raise InputError(Reason.CONFLICT, f"{directory} exists and is not empty; choose another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        domain = Domain(staging, trust_domain, development=True, complete=True)
        secret = _new_passphrase(domain.keys_directory)
        roots = [_create(domain, f"root-{i}", secret) for i in range(1, root_keys + 1)]
        holders = [_create(domain, f"approver-{i}", secret) for i in range(1, approvers + 1)]
        _create(domain, EMERGENCY_KEY, secret)
        metadata = _first_root(
            domain, Holders(roots, root_threshold), Holders(holders, threshold), now_ms=now_ms
        )
        for key in roots[:root_threshold]:
            signer = load_signer(str(domain.key_file(key_name(key))), lambda: secret)
            metadata = sign(metadata, signer, metadata.signed)
        verify_roots(metadata.to_bytes(), ())
        write_atomic(domain.root_path, metadata.to_bytes())
        domain._save(complete=True)
        staging.replace(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return open_domain(directory)


class Ceremony:
    """The making of a domain whose holders keep their own keys: gathered, signed by each, finished."""

    def __init__(self, domain: Domain, metadata: Metadata[Root]) -> None:
        self.domain = domain
        self.metadata = metadata

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        root: Holders,
        approvers: Holders,
        trust_domain: str = DEFAULT_TRUST_DOMAIN,
        clock: Clock | None = None,
    ) -> Self:
        """Write the unsigned root over the holders' public keys, and the control plane's own keys and CA.

        Raises:
            InputError: CONFLICT, if there already is a domain; INPUT_INVALID for bad names.
            EvidenceError: KEY_UNSAFE, METADATA_UNSAFE or IDENTITY_INVALID; nothing was written.
        """
        now_ms = (clock or SystemClock()).now_ms()
        domain = Domain(directory, trust_domain, development=False, complete=False)
        for made in (directory / "domain.json", domain.online_directory, domain.ca_directory):
            if made.exists():
                raise InputError(Reason.CONFLICT, f"{made} exists; choose another directory")
        _check_names(root.keys)
        _check_names(approvers.keys)
        # A trial with stand-in online keys: refuse unsafe keys before anything is written.
        with tempfile.TemporaryDirectory() as trial:
            _first_root(
                Domain(Path(trial), trust_domain, development=False, complete=False),
                root,
                approvers,
                now_ms=now_ms,
                with_ca=False,
            )
        metadata = _first_root(domain, root, approvers, now_ms=now_ms)
        for key in (*root.keys, *approvers.keys):
            write_public(domain.keys_directory / f"{key_name(key)}.pub.json", key)
        ceremony = cls(domain, metadata)
        ceremony._write()
        domain._save(complete=False)
        return ceremony

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Continue a ceremony.

        Raises:
            InputError: NOT_FOUND; CONFLICT, if the domain is already complete.
        """
        domain = open_domain(directory)
        if domain.complete:
            raise InputError(Reason.CONFLICT, f"the trust domain in {directory} is already complete")
        try:
            data = domain.unsigned_root_path.read_bytes()
        except FileNotFoundError:
            raise InputError(
                Reason.NOT_FOUND, f"{domain.unsigned_root_path} is gone; restore it or start again"
            ) from None
        return cls(domain, parse_metadata(data, Root))

    @property
    def quorum(self) -> Quorum:
        """Who has signed the root and who has not."""
        return quorum_of(self.metadata.signed, "root", self.metadata)

    def merge(self, data: bytes) -> None:
        """Take over the signatures of a copy of the root that a holder signed elsewhere.

        Raises:
            EvidenceError: SIGNATURE_INVALID, if it is a copy of another root; METADATA_INVALID.
        """
        copy = parse_metadata(data, Root)
        if signable_bytes(copy) != signable_bytes(self.metadata):
            raise EvidenceError(Reason.SIGNATURE_INVALID, "the signed file is not a copy of this root")
        for key_id, signature in copy.signatures.items():
            self.metadata = add_signature(self.metadata, key_id, signature.signature, self.metadata.signed)
        self._write()

    def finish(self) -> Domain:
        """Make the signed root the trust anchor.

        Raises:
            EvidenceError: QUORUM_NOT_MET, naming who is missing.
        """
        data = self.metadata.to_bytes()
        verify_roots(data, ())
        write_atomic(self.domain.root_path, data)
        self.domain._save(complete=True)
        self.domain.unsigned_root_path.unlink(missing_ok=True)
        return open_domain(self.domain.directory)

    def _write(self) -> None:
        write_atomic(self.domain.unsigned_root_path, self.metadata.to_bytes())


def emergency_keys(domain: Domain) -> dict[str, str]:
    """Return the emergency keys in a domain directory as `bundle.yaml` names them: name to public key, hex."""
    found: dict[str, str] = {}
    for path in sorted(domain.keys_directory.glob("emergency-*.pub.json")):
        key = load_public(path)
        if key.keytype == "ed25519":
            found[key_name(key)] = str(key.keyval["public"])
    return found


def describe_root(root: Root) -> dict[str, object]:
    """Return who may sign what, for display: role to threshold and holders."""
    roles = {
        role: {
            "threshold": root.roles[role].threshold,
            "keys": [
                {"name": key_name(key), "key_id": key_id, "scheme": key.scheme}
                for key_id, key in keys_of(root, role).items()
            ],
        }
        for role in ("root", BASE_ROLE, *ONLINE_ROLES)
    }
    return {
        "version": root.version,
        "trust_domain": trust_domain_of(root),
        "development": is_development(root),
        "expires": f"{root.expires:%Y-%m-%dT%H:%M:%SZ}",
        "roles": roles,
    }


def _first_root(
    domain: Domain, root: Holders, approvers: Holders, *, now_ms: int, with_ca: bool = True
) -> Metadata[Root]:
    """Make the online keys and the CA, and return the unsigned root that names everybody."""
    secret = _new_passphrase(domain.online_directory)
    snapshot, timestamp = (
        create_key(domain.online_directory / f"{role}.pem", role, secret) for role in ONLINE_ROLES
    )
    metadata = new_root(
        trust_domain=domain.trust_domain,
        root=root,
        approvers=approvers,
        snapshot=snapshot,
        timestamp=timestamp,
        now_ms=now_ms,
        development=domain.development,
    )
    if with_ca:
        create_ca(domain.ca_directory, domain.trust_domain)
    return metadata


def _new_passphrase(directory: Path) -> bytes:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = secrets.token_urlsafe(_PASSPHRASE_BYTES).encode()
    write_atomic(directory / DEVELOPMENT_PASSPHRASE_FILE, secret + b"\n", mode=0o600)
    return secret


def _create(domain: Domain, name: str, secret: bytes) -> Key:
    return create_key(domain.key_file(name), name, secret)


def _check_counts(keys: int, threshold: int, kind: str) -> None:
    if not 1 <= threshold <= keys:
        raise InputError(
            Reason.INPUT_INVALID,
            f"a {kind} threshold of {threshold} needs at least that many keys, not {keys}",
        )


def _check_names(keys: Sequence[Key]) -> None:
    names = [key_name(key) for key in keys]
    for key, name in zip(keys, names, strict=True):
        try:
            check_name(name)
        except EvidenceError as error:
            raise InputError(Reason.INPUT_INVALID, f"key {key.keyid[:12]}: {error.detail}") from None
        if names.count(name) > 1:
            raise InputError(
                Reason.INPUT_INVALID, f"two keys are called {name}; give every holder's key a name of its own"
            )
