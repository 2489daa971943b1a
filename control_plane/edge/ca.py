"""The embedded certificate authority: who gets which certificate, for how long, from which key.

Directory: `ca.pem` (every CA certificate to trust, newest first), `ca.key.pem` (0600, the key that signs now,
encrypted; its passphrase is EGM_PASSPHRASE, EGM_PASSPHRASE_FILE, or the file `passphrase` beside it), and during
a rotation `ca.next.key.pem` and `ca.json`. A rotation has three phases, so that no peer ever meets a certificate
whose CA it does not know yet:

  prepare   the new CA certificate joins `ca.pem`; the old key still signs; nodes fetch the new trust bundle
  activate  the new key signs; the old certificate stays trusted, because leaves under it are still alive
  retire    the old certificate leaves `ca.pem`, once every leaf it signed has expired

Each step is one atomic file replacement; after a crash the same step can be run again.
"""

import enum
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.core.certificates import ca_certificate, check_member, leaf_certificate, proven_key
from trust import limits
from trust.edge.clock import SystemClock
from trust.edge.files import check_private, write_atomic
from trust.edge.keyfiles import (
    DEVELOPMENT_PASSPHRASE_FILE as PASSPHRASE_FILE,
)
from trust.edge.keyfiles import passphrase_from_environment, passphrase_source
from trust.edge.leaf_keys import key_to_pem, make_csr, new_key
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.identity import Svid
from trust.ports import Clock
from trust.spiffe import SpiffeId, check_trust_domain
from trust.x509 import check_anchors, check_svid, to_datetime, to_pem, trust_domain_of_ca, validity

CA_FILE: Final = "ca.pem"
KEY_FILE: Final = "ca.key.pem"
NEXT_KEY_FILE: Final = "ca.next.key.pem"
STATE_FILE: Final = "ca.json"
SVID_FILE: Final = "svid.pem"
SVID_KEY_FILE: Final = "svid.key.pem"


@enum.unique
class Phase(enum.StrEnum):
    """Where a CA rotation stands."""

    STABLE = "stable"
    PREPARED = "prepared"
    ACTIVATED = "activated"


@dataclass(frozen=True, slots=True)
class RotationStatus:
    """`next_step_ms`: Unix time from which the next step is safe; None when there is none."""

    phase: Phase
    anchors: int
    not_after_ms: int  # of the CA certificate that signs now
    next_step_ms: int | None


def _new_certificate(key: ec.EllipticCurvePrivateKey, trust_domain: str, now_ms: int) -> x509.Certificate:
    return ca_certificate(key, trust_domain, serial=x509.random_serial_number(), now_ms=now_ms)


def _passphrase(directory: Path) -> bytes:
    """Return the passphrase of the keys in `directory`. Raises InputError KEY_UNREADABLE."""
    return passphrase_source(directory / KEY_FILE)()


def _write_key(directory: Path, name: str, key: ec.EllipticCurvePrivateKey) -> None:
    encryption = serialization.BestAvailableEncryption(_passphrase(directory))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    write_atomic(directory / name, pem, mode=0o600)


def create_ca(directory: Path, trust_domain: str, *, clock: Clock | None = None) -> None:
    """Make a new CA for `trust_domain` in `directory`.

    Raises:
        InputError: CONFLICT, if there already is one; nothing was changed.
        EvidenceError: IDENTITY_INVALID, for a bad trust domain.
    """
    check_trust_domain(trust_domain)
    if (directory / CA_FILE).exists():
        raise InputError(
            Reason.CONFLICT, f"{directory / CA_FILE} exists; rotate it instead, or choose another directory"
        )
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if passphrase_from_environment() is None:
        write_atomic(directory / PASSPHRASE_FILE, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
    key = new_key()
    certificate = _new_certificate(key, trust_domain, (clock or SystemClock()).now_ms())
    _write_key(directory, KEY_FILE, key)
    write_atomic(directory / CA_FILE, to_pem([certificate]))  # last: it marks the CA as complete


def rotate_ca(
    directory: Path, step: str, *, clock: Clock | None = None, force: bool = False
) -> RotationStatus:
    """Take one step of a rotation: "prepare", "activate" or "retire" (see the module's text).

    Args:
        directory: of the CA.
        step: which.
        clock: for tests.
        force: do not wait until the step is safe (a compromised key; calls will be dropped until nodes catch up).

    Raises:
        InputError: INPUT_INVALID, for a step that is unknown or not next, or too early; says when it is due.
    """
    now_ms = (clock or SystemClock()).now_ms()
    authority = CertificateAuthority.open(directory)
    status = authority.rotation()
    expected = {Phase.STABLE: "prepare", Phase.PREPARED: "activate", Phase.ACTIVATED: "retire"}[status.phase]
    if step != expected:
        raise InputError(
            Reason.INPUT_INVALID, f"the CA is {status.phase}: the next step is {expected}, not {step[:20]!r}"
        )
    if status.next_step_ms is not None and now_ms < status.next_step_ms and not force:
        raise InputError(
            Reason.INPUT_INVALID,
            f"too early to {step}: peers would be cut off; safe from {to_datetime(status.next_step_ms):%FT%TZ}",
        )
    if step == "prepare":
        key = new_key()
        _write_key(directory, NEXT_KEY_FILE, key)
        write_atomic(directory / STATE_FILE, json.dumps({"prepared_ms": now_ms}).encode())
        added = _new_certificate(key, authority.trust_domain, now_ms)
        write_atomic(directory / CA_FILE, to_pem([added, *authority.anchors]))
    elif step == "activate":
        write_atomic(directory / STATE_FILE, json.dumps({"activated_ms": now_ms}).encode())
        (directory / NEXT_KEY_FILE).replace(directory / KEY_FILE)
    else:
        write_atomic(directory / CA_FILE, to_pem([authority.certificate]))
        (directory / STATE_FILE).unlink(missing_ok=True)
    return CertificateAuthority.open(directory).rotation()


class CertificateAuthority:
    """Issues certificates with the key in a directory; follows a rotation of that directory while running."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stamp: tuple[tuple[int, int, int], ...] = ()
        self.anchors: list[x509.Certificate] = []
        self._load()

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open the CA in `directory`.

        Raises:
            InputError: KEY_UNREADABLE or IDENTITY_INVALID, saying which file is wrong and what to do.
        """
        return cls(directory)

    def _load(self) -> None:
        ca_path, key_path = self._directory / CA_FILE, self._directory / KEY_FILE
        stamp = self._stamp_now()
        if not ca_path.exists():
            raise InputError(
                Reason.IDENTITY_INVALID, f"{ca_path} does not exist; create the trust domain with: egm init"
            )
        check_private(key_path)
        try:
            anchors = check_anchors(ca_path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), _passphrase(self._directory))
            domain = trust_domain_of_ca(anchors[0])
        except (MeshError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            text = (
                error.detail
                if isinstance(error, MeshError)
                else "not a PKCS#8 PEM key, or a wrong passphrase"
            )
            raise InputError(
                Reason.IDENTITY_INVALID, f"{self._directory}: {text}; restore the CA from its backup"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(Reason.IDENTITY_INVALID, f"{key_path}: must be an EC key")
        active = [cert for cert in anchors if cert.public_key() == key.public_key()]
        if not active:
            raise InputError(Reason.IDENTITY_INVALID, f"{key_path} belongs to no certificate in {ca_path}")
        self.anchors, self._key, self.certificate, self.trust_domain = anchors, key, active[0], domain
        self._stamp = stamp

    def _stamp_now(self) -> tuple[tuple[int, int, int], ...]:
        stats = [
            (self._directory / name).stat()
            for name in (CA_FILE, KEY_FILE)
            if (self._directory / name).exists()
        ]
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def refresh(self) -> bool:
        """Read the directory again if a rotation step changed it; return whether it did."""
        if self._stamp_now() == self._stamp:
            return False
        self._load()
        return True

    def anchors_pem(self) -> bytes:
        """Return every CA certificate to trust now, newest first (PEM)."""
        self.refresh()
        return to_pem(self.anchors)

    @property
    def not_after_ms(self) -> int:
        """When the certificate that signs now ends, Unix ms."""
        return validity(self.certificate)[1]

    def rotation(self) -> RotationStatus:
        """Return where a rotation stands and from when its next step is safe.

        Raises:
            InputError: INPUT_INVALID, when ca.json is damaged.
        """
        if len(self.anchors) == 1:
            return RotationStatus(Phase.STABLE, 1, self.not_after_ms, None)
        if (self._directory / NEXT_KEY_FILE).exists():
            # Nodes ask for the trust bundle every ANCHORS_REFRESH_S; three periods forgive two failures.
            due = self._step_ms("prepared_ms") + 3 * limits.ANCHORS_REFRESH_S * 1000
            return RotationStatus(Phase.PREPARED, len(self.anchors), self.not_after_ms, due)
        due = self._step_ms("activated_ms") + limits.MAX_SVID_TTL_S * 1000
        old = [validity(anchor)[1] for anchor in self.anchors if anchor != self.certificate]
        return RotationStatus(Phase.ACTIVATED, len(self.anchors), self.not_after_ms, min(due, max(old)))

    def _step_ms(self, name: str) -> int:
        """Return when the last step was taken, Unix ms; 0 when nobody wrote it down."""
        path = self._directory / STATE_FILE
        try:
            found = json.loads(path.read_bytes()).get(name, 0) if path.exists() else 0
            return int(found)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InputError(
                Reason.INPUT_INVALID,
                f"{path} is damaged: restore it; or delete it, and no step waits until every node has followed",
            ) from None

    def issue(self, csr_der: bytes, spiffe_id: SpiffeId, *, ttl_s: int, now_ms: int) -> tuple[bytes, int]:
        """Issue a certificate for `spiffe_id` and the key of the request.

        The request proves possession of its key and nothing else: every name in it is ignored. The caller has
        decided that the requester may be `spiffe_id`.

        Args:
            csr_der: PKCS#10, DER.
            spiffe_id: a member of this CA's trust domain.
            ttl_s: lifetime, 1..MAX_SVID_TTL_S seconds; cut where the CA certificate ends.
            now_ms: Unix time, ms.

        Returns:
            The chain (PEM, leaf first) and its not_after, Unix ms.

        Raises:
            EvidenceError: IDENTITY_INVALID (request or name) or KEY_UNSAFE.
            StateError: IDENTITY_UNAVAILABLE, if the CA certificate has expired.
        """
        self.refresh()
        public_key = proven_key(csr_der)
        check_member(spiffe_id, self.trust_domain)
        if not 1 <= ttl_s <= limits.MAX_SVID_TTL_S:
            raise EvidenceError(Reason.IDENTITY_INVALID, f"lifetime must be 1 to {limits.MAX_SVID_TTL_S} s")
        not_after_ms = min(now_ms + ttl_s * 1000, self.not_after_ms) // 1000 * 1000
        if not_after_ms <= now_ms:
            raise StateError(Reason.IDENTITY_UNAVAILABLE, "the CA certificate has expired; rotate the CA")
        leaf = leaf_certificate(
            public_key,
            spiffe_id,
            issuer=self.certificate,
            issuer_key=self._key,
            serial=x509.random_serial_number(),
            not_before_ms=now_ms - limits.MAX_CLOCK_SKEW_MS,
            not_after_ms=not_after_ms,
        )
        return to_pem([leaf]), not_after_ms


def issue_to_directory(
    ca: CertificateAuthority,
    spiffe_id: SpiffeId,
    directory: Path,
    *,
    ttl_s: int = limits.SVID_TTL_S,
    clock: Clock | None = None,
) -> Svid:
    """Issue a certificate with a fresh key and write svid.pem, svid.key.pem (0600) and ca.pem into `directory`.

    For those who run beside the CA: the control plane itself and operators. Key and certificate are two files, so a
    reader may meet a new key with an old certificate for a moment; `DirectoryIdentity` then keeps what it had, and
    `ensure_directory` repairs what a crash left behind.
    """
    now_ms = (clock or SystemClock()).now_ms()
    key = new_key()
    key_pem = key_to_pem(key)
    chain_pem, _ = ca.issue(make_csr(key), spiffe_id, ttl_s=ttl_s, now_ms=now_ms)
    anchors_pem = ca.anchors_pem()
    svid = check_svid(chain_pem, key_pem, anchors_pem, expected=spiffe_id, now_ms=now_ms)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(directory / CA_FILE, anchors_pem)
    write_atomic(directory / SVID_KEY_FILE, key_pem, mode=0o600)
    write_atomic(directory / SVID_FILE, chain_pem)
    return svid


def ensure_directory(
    ca: CertificateAuthority,
    spiffe_id: SpiffeId,
    directory: Path,
    *,
    ttl_s: int = limits.SVID_TTL_S,
    clock: Clock | None = None,
) -> bool:
    """Make sure `directory` holds a certificate with half its life left; return whether one was issued.

    Also brings ca.pem up to date when the CA rotates.
    """
    clock = clock or SystemClock()
    now_ms = clock.now_ms()
    anchors_pem = ca.anchors_pem()
    read: Callable[[str], bytes] = lambda name: (directory / name).read_bytes()  # noqa: E731
    try:
        svid = check_svid(
            read(SVID_FILE), read(SVID_KEY_FILE), anchors_pem, expected=spiffe_id, now_ms=now_ms
        )
        check_private(directory / SVID_KEY_FILE)
        fresh = now_ms < (svid.not_before_ms + svid.not_after_ms) // 2
    except (MeshError, OSError):
        fresh = False  # missing, torn by a crash, expired, or of a retired CA: all mended by issuing anew
    if not fresh:
        issue_to_directory(ca, spiffe_id, directory, ttl_s=ttl_s, clock=clock)
        return True
    if not (directory / CA_FILE).exists() or read(CA_FILE) != anchors_pem:
        write_atomic(directory / CA_FILE, anchors_pem)
    return False
