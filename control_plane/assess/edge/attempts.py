"""Attempts at one service's sidecar: without identity, as an impostor, as a stranger, with permits, and past it."""

import asyncio
import contextlib
import datetime
import socket
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.assess import answers
from control_plane.assess.answers import UNREACHED, Answer, Bypass
from control_plane.assess.edge.calls import Identity, call, call_anyhow, ping
from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.permits import Mint, Shown
from control_plane.assess.model import Check, Outcome
from trust.address import split_address
from trust.edge.tls import read_ca_file

_SOON: Final = datetime.timedelta(minutes=10)
_RETRIES: Final = 6  # a permit minted in the first second of a callee's sidecar cannot be verified: ask again
_PAUSE_S: Final = 0.5
_DIAL_S: Final = 3.0
_ELSEWHERE: Final = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))  # RFC 5737, RFC 3849


class Attempts:
    """Attempts at one service; each returns the check that it decides."""

    def __init__(
        self,
        installation: Installation,
        service: str,
        address: str,
        *,
        run: str,
        identity: Identity,
        calm: Identity,
    ) -> None:
        """Aim at an inbound listener.

        Args:
            installation: what is known.
            service: logical name.
            address: HOST:PORT of an inbound listener of it.
            run: of the assessment.
            identity: a genuine certificate of somebody that no policy names; permits are shown with it.
            calm: one of somebody who does nothing else that could be noticed, and so answered by a quarantine.
        """
        self._installation, self.service, self._address, self._run = installation, service, address, run
        self.alive = False  # whether a sidecar has answered a genuine caller there
        self._identity, self._calm, self._dns = identity, calm, installation.server_dns(service)

    async def ping(
        self, metadata: Sequence[tuple[str, str | bytes]] = (), request: bytes | None = None
    ) -> Answer:
        """Call as the genuine stranger."""
        sent = ping(self._run) if request is None else request
        return await call(
            self._address, sent, identity=self._identity, server_dns=self._dns, metadata=metadata
        )

    async def identities(self) -> list[Check]:
        """Try to be let in without a certificate, in plaintext, and with one of another CA."""
        server = self._dns

        def tried(identity: Identity | None) -> Awaitable[Answer]:
            dns = "" if identity is None else server
            return call(self._address, ping(self._run), identity=identity, server_dns=dns)

        control, bare, plain, impostor = await asyncio.gather(
            tried(self._calm),
            tried(Identity(self._calm.anchors)),
            tried(None),
            tried(impostor_of(self._calm)),
        )
        self.alive = control.alive
        return [
            answers.stranger(self.service, control),
            answers.unidentified(
                "unauthenticated-refused",
                self.service,
                "called without a certificate, and in plaintext",
                (bare, plain),
                control,
            ),
            answers.unidentified(
                "impostor-refused",
                self.service,
                "called with a certificate of another CA",
                (impostor,),
                control,
            ),
        ]

    async def permits(self, mint: Mint) -> tuple[list[Check], list[Shown]]:
        """Try the permits that must be refused, and one that must pass.

        Returns:
            The checks; and the genuine permits that were accepted, a parent and its child, for lineage.
        """
        audience = self._installation.audience(self.service)
        request = ping(self._run)
        genuine = mint.show(mint.claims(audience, request))
        passed = await self.ping(genuine.metadata, request)
        for _ in range(_RETRIES):
            if passed.reason != "PERMIT_UNVERIFIABLE":
                break
            await asyncio.sleep(_PAUSE_S)
            genuine = mint.show(mint.claims(audience, request))
            passed = await self.ping(genuine.metadata, request)
        checks = [answers.genuine_permit(self.service, passed, genuine.sha256.hex())]
        strange = answers.stranger_with_permit(self.service, passed)
        checks += [] if strange is None else [strange]
        for name, tried, shown in self._bad(mint, audience, request, genuine):
            answer = await self.ping(() if shown is None else shown.metadata, request)
            checks.append(answers.with_permit(name, self.service, tried, answer))
        child = mint.show(mint.claims(audience, request, genuine))
        await self.ping(child.metadata, request)
        # where a call without a permit goes through, one with a permit shows nothing
        demanded = [
            one.outcome for one in checks if one.id in {"permit-genuine-recognised", "permit-missing-refused"}
        ]
        accepted = set(demanded) == {Outcome.HELD}
        return checks, [genuine, child] if accepted else []

    def _bad(
        self, mint: Mint, audience: str, request: bytes, genuine: Shown
    ) -> Sequence[tuple[str, str, Shown | None]]:
        def claims() -> Any:
            return mint.claims(audience, request)

        elsewhere = f"{audience}-elsewhere"
        return (
            ("permit-missing-refused", "called without a permit", None),
            (
                "permit-forged-refused",
                "called with a permit signed by another key",
                mint.show(claims(), forged=True),
            ),
            ("permit-replayed-refused", "showed the same permit again", genuine),
            (
                "permit-misdirected-refused",
                "showed a permit for another service",
                mint.show(mint.claims(elsewhere, request)),
            ),
            (
                "permit-stolen-refused",
                "showed a permit that is bound to another certificate",
                mint.show(replace(claims(), certificate_sha256=bytes(range(32)))),
            ),
            (
                "permit-expired-refused",
                "showed a permit whose time was over",
                mint.show(mint.expired(claims())),
            ),
            (
                "unattested-refused",
                "showed the permit of a node that no quorum vouches for",
                mint.show(claims(), attested=False),
            ),
        )


def impostor_of(identity: Identity) -> Identity:
    """Return a certificate with the names of `identity`, that a CA of the same name, made here, has signed."""
    genuine = x509.load_pem_x509_certificates(identity.chain)[0]
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    issuer = genuine.issuer or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "egm")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(genuine.subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SOON)
        .not_valid_after(now + _SOON)
    )
    for extension in genuine.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName | x509.KeyUsage | x509.ExtendedKeyUsage):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    certificate = builder.sign(ca_key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(identity.anchors, certificate.public_bytes(serialization.Encoding.PEM), pem)


async def past(installation: Installation, service: str, run: str) -> Check:
    """Dial a service past every sidecar of it."""
    known = upstreams(installation, service)
    tried = dict(one for upstream in known.values() if upstream for one in reachable(upstream))
    found = await asyncio.gather(*(_dialled(address, run) for address in tried))
    attempts = [Bypass(*one, answer) for one, answer in zip(tried.items(), found, strict=True)]
    return answers.bypass(service, attempts, [node for node, upstream in known.items() if not upstream])


async def _dialled(address: str, run: str) -> Answer:
    """Call in plaintext, then with TLS; tell a port where nobody is from one that does not say what it is."""
    answer = await call(address, ping(run), identity=None, timeout_s=_DIAL_S)
    if answer.code != UNREACHED or not await accepts(address):
        return answer
    tls = Answer(UNREACHED) if address.startswith("unix:") else await call_anyhow(address, run, _DIAL_S)
    return tls if tls.code != UNREACHED else Answer(answers.OTHERWISE, detail=answer.detail)


async def accepts(address: str, timeout_s: float = _DIAL_S) -> bool:
    """Whether something accepts connections at HOST:PORT or unix:///PATH."""
    try:
        async with asyncio.timeout(timeout_s):
            if address.startswith("unix:"):
                opening = asyncio.open_unix_connection(address.removeprefix("unix:").replace("//", "", 1))
            else:
                opening = asyncio.open_connection(*split_address(address))
            _, writer = await opening
        writer.close()
    except (OSError, TimeoutError):
        return False
    return True


def upstreams(installation: Installation, service: str) -> dict[str, str]:
    """Return node -> where its sidecar finds the service, as its configuration says; "" when that is not known here."""
    found: dict[str, str] = {}
    for name, entry in installation.mesh.nodes.items():
        listeners = [
            one for one in node_config(entry.config).get("inbound") or () if one.get("service") == service
        ]
        if listeners or service in entry.inbound:
            addresses = [str((one.get("upstream") or {}).get("address") or "") for one in listeners]
            found[name] = addresses[0] if addresses else ""
    return found


def node_config(path: str) -> Mapping[str, Any]:
    """Return a sidecar's configuration; empty when it is not on this machine or not readable."""
    if not path or not Path(path).is_file():
        return {}
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def reachable(upstream: str) -> list[tuple[str, bool]]:
    """Return the addresses at which to try a service: its own, and its port on every other address of this machine.

    The flag says whether only this machine can try it that way.
    """
    if upstream.startswith("unix:"):
        return [(upstream, True)]
    host, port = split_address(upstream)
    own = (
        f"{host}:{port}" if ":" not in host else f"[{host}]:{port}",
        host in {"127.0.0.1", "::1", "localhost"},
    )
    outside = [(f"[{one}]:{port}" if ":" in one else f"{one}:{port}", False) for one in outside_addresses()]
    return [own, *(one for one in outside if one[0] != own[0])]


def outside_addresses() -> list[str]:
    """Return the addresses by which other machines reach this one. Sends nothing."""
    found: set[str] = set()
    for target, family in _ELSEWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                found.add(probe.getsockname()[0])
        except OSError:
            continue  # no route of this family
    with contextlib.suppress(OSError):  # a machine need not know its own name
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(one for one in found if not one.startswith(("127.", "fe80")) and one != "::1")


def safe_identity(operator_dir: Path) -> Identity:
    """Return the operator's own certificate: in a safe assessment it stands for somebody that no policy names."""
    return Identity(
        read_ca_file(operator_dir / "ca.pem"),
        (operator_dir / "svid.pem").read_bytes(),
        (operator_dir / "svid.key.pem").read_bytes(),
    )
