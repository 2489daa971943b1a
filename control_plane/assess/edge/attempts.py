"""Attempts at one service's sidecar: without identity, as an impostor, as a stranger, and with permits."""

import asyncio
import datetime
import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.assess import answers
from control_plane.assess.answers import Answer
from control_plane.assess.edge import decoys
from control_plane.assess.edge.calls import Identity, Metadata, call, ping
from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.permits import Mint, Shown
from control_plane.assess.model import Check, Outcome
from trust.edge.tls import read_ca_file
from trust.spiffe import SpiffeId

_SOON: Final = datetime.timedelta(minutes=10)
_DECOYS: Final = 2  # calls at each listener; more would show as probing
_RETRIES: Final = 6  # a permit minted in the first second of a callee's sidecar cannot be verified: ask again
_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Decoy:
    """A caller whose name says nothing of an assessment; with a mint its calls bring genuine permits."""

    identity: Identity
    caller: str
    who: SpiffeId | None = None
    mint: Mint | None = None


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
        decoy: Decoy,
    ) -> None:
        """Aim at an inbound listener.

        Args:
            installation: what is known.
            service: logical name.
            address: HOST:PORT of an inbound listener of it.
            run: of the assessment.
            identity: a genuine certificate of somebody that no policy names; permits are shown with it.
            calm: one of somebody who does nothing else that could be noticed, and so answered by a quarantine.
            decoy: one of somebody whose name says nothing of an assessment.
        """
        self._installation, self.service, self._address, self._run = installation, service, address, run
        self.alive = False  # whether a sidecar has answered a genuine caller there
        self._identity, self._calm, self._dns = identity, calm, installation.server_dns(service)
        self._decoy = decoy
        self.answered = 0  # calls of ours that a sidecar decided
        self.said: dict[str, Answer] = {}  # decision id -> what a caller of ours was told

    async def ping(
        self, metadata: Sequence[tuple[str, str | bytes]] = (), request: bytes | None = None
    ) -> Answer:
        """Call as the genuine stranger."""
        sent = ping(self._run) if request is None else request
        answer = await call(
            self._address, sent, identity=self._identity, server_dns=self._dns, metadata=metadata
        )
        if answer.decision_id:
            self.said[answer.decision_id] = answer
        self.answered += answer.alive
        return answer

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
        self.answered += control.alive
        return [
            answers.stranger(self.service, control),
            await self._decoyed(control),
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

    async def _decoyed(self, control: Answer) -> Check:
        """Call what nothing tells from an ordinary call; only where the reserved method was refused rightly.

        Elsewhere it would reach the service, which the grade already says: an assessment is to harm nobody. Nor without
        a caller made for it: a safe assessment calls as the operator, who would be taken for somebody trying methods.
        """
        tried: list[tuple[str, Answer]] = []
        if self._decoy.who is not None and answers.refuses_strangers(control):
            engine = self._installation.engine
            settings = None if engine is None else engine.mesh.services.get(self.service)
            known = frozenset(() if engine is None else engine.methods_of(self.service).methods())
            packages = list(() if settings is None else settings.grpc_services) or sorted(
                {one.rpartition("/")[0] for one in known}
            )
            for _ in range(_DECOYS):
                method = decoys.method(packages, known)
                tried.append((method, await self._as_decoy(method)))
                if not tried[-1][1].reason:
                    break  # it came through, or nobody answers: once is enough
        return answers.decoyed(self.service, self._decoy.caller, control, tried)

    async def _as_decoy(self, method: str) -> Answer:
        for _ in range(_RETRIES):
            answer = await self._call_as_decoy(method)
            if answer.reason != "PERMIT_UNVERIFIABLE":
                break
            await asyncio.sleep(_PAUSE_S)
        return answer

    async def _call_as_decoy(self, method: str) -> Answer:
        request, mint = secrets.token_bytes(secrets.randbelow(40) + 8), self._decoy.mint
        metadata: Metadata = ()
        if mint is not None and self._decoy.who is not None:
            audience = self._installation.audience(self.service)
            claims = mint.claims(audience, request, method=method, caller=self._decoy.who)
            metadata = mint.show(claims).metadata
        return await call(
            self._address,
            request,
            identity=self._decoy.identity,
            server_dns=self._dns,
            metadata=metadata,
            method=method,
        )

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


def safe_identity(operator_dir: Path) -> Identity:
    """Return the operator's own certificate: in a safe assessment it stands for somebody that no policy names."""
    return Identity(
        read_ca_file(operator_dir / "ca.pem"),
        (operator_dir / "svid.pem").read_bytes(),
        (operator_dir / "svid.key.pem").read_bytes(),
    )
