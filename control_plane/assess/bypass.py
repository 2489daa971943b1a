"""Whether a service can be reached past its sidecar, from the answers to calls of its own addresses. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from control_plane.assess.answers import CALLER_REFUSALS, OWN_CREDENTIALS, POLICY_REFUSALS, UNREACHED, Answer
from control_plane.assess.model import Basis, Check, Outcome

LOCAL_ONLY: Final = "only processes of its own machine reach it past the sidecar"
OTHERWISE: Final = "OTHERWISE"  # something accepts connections, and answers neither plaintext nor TLS
# Of a service's interceptor that wants its sidecar's hand-over, or of a sidecar that stands there itself.
_GOVERNED: Final = frozenset({"PERMIT_MISSING"}) | CALLER_REFUSALS | POLICY_REFUSALS


@dataclass(frozen=True, slots=True)
class Bypass:
    """One attempt to reach a service past its sidecar.

    Args:
        address: dialled.
        local: only this machine can try it that way.
        answer: code UNREACHED: nothing accepts a connection; OTHERWISE.
    """

    address: str
    local: bool
    answer: Answer

    @property
    def closed(self) -> bool:
        """Whether nobody is there, or something that governs: it says so in the mesh's words, not by a status alone."""
        return self.answer.code == UNREACHED or self.answer.reason in _GOVERNED

    @property
    def untold(self) -> str:
        """Why the answer tells nothing; "" when it does.

        A proxy that asks for a token turns a stranger away; whoever has the token executes without governance.
        """
        if self.closed:
            return ""
        if self.answer.code == OTHERWISE:
            return "accepts connections, and does not say what it is"
        if self.answer.reason:
            return f"refuses with {self.answer.reason}, which says nothing of who may pass"
        if self.answer.code in OWN_CREDENTIALS:
            return "asks for credentials of its own: who has them executes there without governance"
        return ""


def judge(service: str, attempts: Sequence[Bypass], unknown: Sequence[str] = ()) -> Check:
    """Nothing but its own machine may reach a service past its sidecar; best nothing at all.

    `unknown`: nodes that serve it of which it is not known here where their service listens.
    """
    tried = f"dialled the service past its sidecar at {len(attempts)} addresses"
    evidence = {one.address: str(one.answer)[:120] for one in attempts}

    def check(outcome: Outcome, answered: str) -> Check:
        return Check("bypass-closed", service, outcome, Basis.PROBED, tried, answered, evidence)

    doubtful = [one for one in attempts if one.untold and not one.local]
    open_ = [one for one in attempts if not one.closed and not one.untold]
    if remote := [one.address for one in open_ if not one.local]:
        return check(
            Outcome.FAILED, f"{', '.join(remote)} answers without a sidecar, from other machines too"
        )
    if unknown or not attempts:
        where = f" by {', '.join(unknown)}" if unknown else ""
        return check(Outcome.UNKNOWN, f"where the service listens{where} is not known here")
    if doubtful:
        why = "; ".join(f"{one.address}, which other machines reach, {one.untold}" for one in doubtful)
        return check(Outcome.UNKNOWN, why)
    if local := [one.address for one in attempts if not one.closed and one.answer.code != OTHERWISE]:
        return check(Outcome.HELD, f"{LOCAL_ONLY} ({', '.join(local)})")
    if any(one.local for one in attempts) and all(one.answer.code == UNREACHED for one in attempts):
        return check(
            Outcome.UNKNOWN, "nothing answers where the service listens: start it, then assess again"
        )
    return check(Outcome.HELD, "no address answered")
