"""Which permit goes with an outgoing call, and whether the one that came with an incoming call is good, once.

The caller's sidecar holds a `Minter`, the callee's a `Verifier`. A verified permit does not allow a call: the callee's
sidecar decides again itself.
"""

from collections.abc import Callable, Iterable
from typing import Final

from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.endorsements import Endorsements
from sidecar.core.replay import ReplayCache
from trust import limits
from trust.attestation.credential import CREDENTIAL_KEY
from trust.errors import EvidenceError, Reason
from trust.handover import Handover, mint_handover
from trust.node_key import ENDORSEMENT_KEY
from trust.permit import (
    PERMIT_KEY,
    Permit,
    PermitClaims,
    authenticate,
    check_caller,
    check_request,
    mint,
    permit_sha256,
)
from trust.policy.types import METHOD_ALONE_ANNOTATION
from trust.spiffe import SpiffeId

LIFETIME_S: Final = limits.MAX_PERMIT_LIFETIME_S


def presented(sent: Iterable[tuple[str, str | bytes]]) -> tuple[str | None, bytes | None]:
    """Return the permit and the endorsement among a call's metadata; None for what is not there.

    Raises:
        EvidenceError: PERMIT_INVALID, if there are several of one, or of the wrong type.
    """
    permit: str | None = None
    endorsement: bytes | None = None
    for key, value in sent:
        if key == PERMIT_KEY:
            if permit is not None or not isinstance(value, str):
                raise EvidenceError(
                    Reason.PERMIT_INVALID, f"{PERMIT_KEY} must be in the metadata once, as text"
                )
            permit = value
        elif key == ENDORSEMENT_KEY:
            if endorsement is not None or not isinstance(value, bytes):
                raise EvidenceError(
                    Reason.PERMIT_INVALID, f"{ENDORSEMENT_KEY} must be in the metadata once, as bytes"
                )
            endorsement = value
    return permit, endorsement


def carried(sent: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    """Return the trust credential among a call's metadata; None when none came.

    Raises:
        EvidenceError: ATTESTATION_INVALID, if there are several, or it is not of bytes.
    """
    found = [value for key, value in sent if key == CREDENTIAL_KEY]
    if not found:
        return None
    if len(found) > 1 or not isinstance(found[0], bytes):
        raise EvidenceError(
            Reason.ATTESTATION_INVALID, f"{CREDENTIAL_KEY} must be in the metadata once, as bytes"
        )
    return found[0]


def check_enough(permit: Permit, decision: Decision) -> None:
    """Refuse a permit that binds no request, unless the policies that decide *here* let it.

    What the caller's policies say does not count: a compromised caller's sidecar would say anything.

    Raises:
        EvidenceError: PERMIT_MISMATCH.
    """
    if permit.claims.request_sha256 is None and not decision.method_alone:
        raise EvidenceError(
            Reason.PERMIT_MISMATCH,
            "permit refused: it binds no request (req), and not every policy that allows this call here says "
            f"{METHOD_ALONE_ANNOTATION}",
        )


class Minter:
    """Mints the permits of one node."""

    def __init__(
        self,
        node: SpiffeId,
        key_id: Callable[[], str],
        sign: Callable[[bytes], bytes],
        ids: Callable[[], bytes],
        *,
        lifetime_s: int = LIFETIME_S,
    ) -> None:
        """Take the node's key.

        Args:
            node: whose permits they are.
            key_id: returns the digest of the endorsement in force, or raises StateError when there is none.
            sign: makes the node key's Ed25519 signature.
            ids: draws 128 random bits (16 bytes).
            lifetime_s: 1..MAX_PERMIT_LIFETIME_S.
        """
        self._node, self._key_id, self._sign, self._ids = str(node), key_id, sign, ids
        self._lifetime_s = lifetime_s

    def mint_for(  # noqa: PLR0917  # every one binds the permit to something else
        self,
        attempt: Attempt,
        decision: Decision,
        request_sha256: bytes | None,
        parent: Permit | None,
        root_id: bytes,
        client_cert_sha256: bytes,
        now_ms: int,
        *,
        execution_id: bytes,
        callee: str,
        policy_sha256: bytes,
        credential_sha256: bytes | None = None,
    ) -> str:
        """Return the permit of one outgoing call that was allowed.

        Args:
            attempt: the outgoing call; its principal is the permit's subject.
            decision: that allowed it.
            request_sha256: of the (opening) request as received from the caller, or NO_MESSAGE; None binds the method
                alone, which the deciding policies must say.
            parent: permit of the execution that makes this call (`Verifier.parent_of`); None for a root.
            root_id: of the chain: the parent's root, or `execution_id` for a root.
            client_cert_sha256: of the certificate that the connection to the callee shows.
            now_ms: Unix time, ms.
            execution_id: UUIDv7, 16 bytes.
            callee: SPIFFE ID of the workload that may execute it.
            policy_sha256: SHA-256 of the digest of the policy that was decided under.
            credential_sha256: of this node's trust credential; None when the policy names no witnesses.

        Raises:
            EvidenceError: CALLER_UNIDENTIFIED; PERMIT_INVALID, if the call does not fit into a permit.
            StateError: the node's key is not endorsed at the moment.
            ValueError: the call was not allowed, or not without a request, or `parent` is not its parent.
        """
        if not decision.allowed or attempt.direction is not Direction.OUTBOUND:
            raise ValueError("only an outgoing call that was allowed gets a permit")
        if request_sha256 is None and not decision.method_alone:
            raise ValueError("the policies do not let a permit bind the method alone")
        caller = _caller(attempt)
        if parent is not None and (parent.claims.audience, parent.claims.root_id) != (caller, root_id):
            raise ValueError("the parent permit is of another workload or another chain")
        # A clock that went back a little: no permit is older than the execution that it is for.
        issued_s = max(now_ms // 1000, _begun_s(execution_id))
        claims = PermitClaims(
            issuer=self._node,
            subject=caller,
            audience=callee,
            issued_s=issued_s,
            expires_s=issued_s + self._lifetime_s,
            permit_id=self._ids(),
            root_id=root_id,
            execution_id=execution_id,
            method=attempt.method,
            policy_version=decision.policy_version,
            policy_digest=policy_sha256,
            certificate_sha256=client_cert_sha256,
            request_sha256=request_sha256,
            parent_sha256=None if parent is None else parent.sha256,
            credential_sha256=credential_sha256,
        )
        return mint(claims, self._sign, self._key_id())

    def hand_over(
        self,
        attempt: Attempt,
        *,
        audience: str,
        execution_id: bytes,
        permit_sha256: bytes | None,
        request_sha256: bytes | None,
        now_ms: int,
    ) -> str:
        """Return the token with which an admitted incoming call reaches the service next to this sidecar.

        Args:
            attempt: the incoming call.
            audience: SPIFFE ID of the workload that serves it here.
            execution_id: UUIDv7, 16 bytes.
            permit_sha256: of the accepted permit; None when there was none (below level 5).
            request_sha256: of the (opening) request of the call, or NO_MESSAGE; None when it was decided without.
            now_ms: Unix time, ms.

        Raises:
            EvidenceError: PERMIT_INVALID, if the call does not fit into a token.
        """
        issued_s = now_ms // 1000
        claims = Handover(
            audience=audience,
            issued_s=issued_s,
            expires_s=issued_s + limits.MAX_HANDOVER_LIFETIME_S,
            token_id=self._ids(),
            execution_id=execution_id,
            method=attempt.method,
            caller=attempt.principal,
            permit_sha256=permit_sha256,
            request_sha256=request_sha256,
        )
        return mint_handover(claims, self._sign)


class Verifier:
    """Accepts each permit once, and knows the permits of executions that are open here. Not thread-safe."""

    def __init__(
        self, endorsements: Endorsements, replay: ReplayCache, *, max_open: int = limits.MAX_PARENT_PERMITS
    ) -> None:
        """Start with what was verified and spent so far.

        Args:
            endorsements: keys of the nodes that call.
            replay: permits that were spent; it refuses those minted before this boot.
            max_open: open executions whose calls can be linked to them; beyond, the oldest cannot.
        """
        self._endorsements, self._replay, self._max_open = endorsements, replay, max_open
        self._open: dict[bytes, Permit] = {}

    def accept(
        self,
        token: str | None,
        endorsement: bytes | None,
        attempt: Attempt,
        *,
        audience: str,
        request_sha256: bytes | None,
        client_cert_sha256: bytes,
        now_ms: int,
    ) -> Permit:
        """Return the permit of an incoming call whose request is known: `present`, then `bind`.

        Args:
            token: see `present`, as for all others.
            endorsement: see `present`.
            attempt: see `present`.
            audience: see `present`.
            request_sha256: see `bind`.
            client_cert_sha256: see `present`.
            now_ms: see `present`.

        Raises:
            MeshError: as both.
        """
        permit = self.present(
            token,
            endorsement,
            attempt,
            audience=audience,
            client_cert_sha256=client_cert_sha256,
            now_ms=now_ms,
        )
        self.bind(permit, request_sha256)
        return permit

    def present(
        self,
        token: str | None,
        endorsement: bytes | None,
        attempt: Attempt,
        *,
        audience: str,
        client_cert_sha256: bytes,
        now_ms: int,
    ) -> Permit:
        """Return the permit of an incoming call, spent; `bind` it to the request next, before deciding.

        A genuine permit is spent as soon as it is shown to its audience, also when it then turns out to be for
        another call: there is no second attempt with it.

        Args:
            token: as received; None when the call carries none.
            endorsement: as received; needed for a key that is not known yet.
            attempt: the incoming call; its principal is proved by the connection.
            audience: SPIFFE ID of the workload that serves it here.
            client_cert_sha256: of the connection's client certificate.
            now_ms: Unix time, ms.

        Raises:
            EvidenceError: PERMIT_MISSING, PERMIT_INVALID, PERMIT_MISMATCH, CALLER_UNIDENTIFIED.
            StateError: PERMIT_EXPIRED, PERMIT_REPLAYED, PERMIT_UNVERIFIABLE.
            CapacityError: PERMIT_UNVERIFIABLE.
        """
        if token is None:
            raise EvidenceError(
                Reason.PERMIT_MISSING,
                f"the call carries no permit ({PERMIT_KEY}); the caller's sidecar adds one",
            )
        caller = _caller(attempt)
        permit = authenticate(
            token,
            key_of=lambda kid: self._endorsements.key_of(kid, endorsement, now_ms=now_ms),
            audience=audience,
            now_ms=now_ms,
        )
        self._spend(permit.claims, now_ms)
        check_caller(permit, caller=caller, method=attempt.method, client_cert_sha256=client_cert_sha256)
        return permit

    def _spend(self, claims: PermitClaims, now_ms: int) -> None:
        """Spend the execution itself: not even another permit of its node may begin it again.

        Two executions with one id would hide each other in ledgers and indexes. So the id is what is remembered, as
        long as a permit can be minted for it; and one that began longer ago, or after its permit, is none of theirs.
        """
        begun_s = _begun_s(claims.execution_id)
        if not begun_s <= claims.issued_s <= begun_s + limits.MAX_PERMIT_DELAY_S:
            raise EvidenceError(
                Reason.PERMIT_INVALID,
                "permit refused: its execution (eid) did not begin at most "
                f"{limits.MAX_PERMIT_DELAY_S} s before it was minted (iat)",
            )
        self._replay.spend(
            claims.execution_id.hex(),
            iat_ms=begun_s * 1000,
            exp_ms=(begun_s + limits.MAX_PERMIT_DELAY_S + limits.MAX_PERMIT_LIFETIME_S) * 1000,
            now_ms=now_ms,
        )

    def bind(self, permit: Permit, request_sha256: bytes | None) -> None:
        """Check what a presented permit says of the request; then calls can be linked to it, until `closed`.

        Args:
            permit: from `present`.
            request_sha256: of the request as received (of a stream: of its opening message, or NO_MESSAGE); None
                where none was waited for, which only a permit bound by method alone fits. Whether that is enough
                is for `check_enough`.

        Raises:
            EvidenceError: PERMIT_MISMATCH.
        """
        check_request(permit, request_sha256)
        if len(self._open) >= self._max_open:
            del self._open[next(iter(self._open))]
        self._open[permit.sha256] = permit

    def closed(self, permit: Permit) -> None:
        """Forget an execution that has ended: it makes no more calls."""
        self._open.pop(permit.sha256, None)

    def parent_of(self, token: str, caller: str) -> Permit | None:
        """Return the permit of the open execution that makes an outgoing call, None when `token` proves none.

        Args:
            token: the permit that the local workload copied into its call.
            caller: SPIFFE ID of that workload, as its connection proves it.
        """
        permit = self._open.get(permit_sha256(token))
        return permit if permit is not None and permit.claims.audience == caller else None


def _begun_s(execution_id: bytes) -> int:
    """Return the Unix time (s) at which a UUIDv7 was drawn, as it says itself."""
    return int.from_bytes(execution_id[:6]) // 1000


def _caller(attempt: Attempt) -> str:
    if attempt.principal is None:
        reason = attempt.unidentified or Reason.CALLER_UNIDENTIFIED
        raise EvidenceError(reason, "the caller has no verified identity, which a permit needs")
    return attempt.principal
