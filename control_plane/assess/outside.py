"""What an address shows from outside, without any credentials: a bare service, or something behind a mesh. Pure."""

from control_plane.assess.answers import CALLER_REFUSALS, OWN_CREDENTIALS, UNREACHED, Answer
from control_plane.assess.catalogue import Catalogue
from control_plane.assess.model import Basis, Check, Outcome, ServiceGrade, grade

NOT_FROM_OUTSIDE = (
    "this cannot be told from outside: assess the mesh that it belongs to (--mesh DIR --service NAME)"
)


def outside(
    catalogue: Catalogue, target: str, plain: Answer, tls: Answer
) -> tuple[ServiceGrade, tuple[str, ...]]:
    """Return the grade of the service at `target`, and notes.

    Args:
        catalogue: of the model.
        target: HOST:PORT.
        plain: the answer to a call of the reserved method in plaintext, without identity.
        tls: to the same call with TLS, without a client certificate.
    """
    tried = "called without any identity, from outside"
    evidence = {"plaintext": str(plain)[:200], "tls": str(tls)[:200]}
    bare = [
        one for one in (plain, tls) if one.code != UNREACHED and not one.alive and one.code != "UNAVAILABLE"
    ]
    let_in = [one for one in (plain, tls) if one.replied]
    governed = [one for one in (plain, tls) if one.reason]

    def check(name: str, outcome: Outcome, answered: str) -> Check:
        return Check(name, target, outcome, Basis.PROBED, tried, answered, evidence)

    if bare and all(one.code in OWN_CREDENTIALS for one in bare):
        checks = []
        notes = [
            f"the service, or a proxy before it, asks for credentials of its own ({bare[0].code}): whom it lets in, and"
            " by which policy, it does not say",
            NOT_FROM_OUTSIDE,
        ]
    elif bare:
        code = bare[0].code
        why = f"the service itself answered ({code}): nothing asked who calls, decided or recorded it"
        names = (
            "stranger-refused",
            "unauthenticated-refused",
            "forbidden-refused",
            "bypass-closed",
            "probe-recorded",
        )
        checks = [check(name, Outcome.FAILED, why) for name in names]
        notes = [
            "nothing stands before this service; put it behind a sidecar: egm up --service NAME=HOST:PORT"
        ]
    elif let_in:
        why = "a sidecar answered, and let a caller without identity through"
        checks = [
            check(name, Outcome.FAILED, why) for name in ("stranger-refused", "unauthenticated-refused")
        ]
        notes = ["a sidecar stands before this service and blocks nothing for this caller", NOT_FROM_OUTSIDE]
    elif governed:
        reason = governed[0].reason
        checks = [check("stranger-refused", Outcome.HELD, f"refused by a sidecar: {reason}")]
        if reason in CALLER_REFUSALS:
            checks.append(check("unauthenticated-refused", Outcome.HELD, f"refused: {reason}"))
        notes = [f"a sidecar stands before this service and refused the call ({reason})", NOT_FROM_OUTSIDE]
    else:
        checks = []
        notes = [f"nothing answered a caller without a certificate ({plain}; {tls})", NOT_FROM_OUTSIDE]
    return grade(catalogue, target, checks, unmade=NOT_FROM_OUTSIDE), tuple(notes)
