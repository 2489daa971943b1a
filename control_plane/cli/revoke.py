"""`egm revoke`: deny or restrict at once, with one emergency key and for a bounded time."""

from pathlib import Path
from typing import Annotated, Final

import typer

from control_plane.cli.amending import propose
from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.fingerprint import fingerprint
from control_plane.cli.keys import passphrase_for
from control_plane.cli.output import Exit, console, emit, table
from control_plane.cli.when import iso, left, seconds
from control_plane.core import amend
from control_plane.edge.emergency_client import Answer, EmergencyClient
from control_plane.edge.given_file import read_given
from control_plane.edge.mesh_file import MeshFile
from egm.v1 import gossip_pb2
from trust import limits
from trust.edge.clock import SystemClock
from trust.edge.files import write_atomic
from trust.edge.keyfiles import load_signer
from trust.errors import EvidenceError, InputError, Reason
from trust.keys import key_name
from trust.revocation import Directive, Kind, Subject, read_directive, sign_directive, subject_of
from trust.spiffe import check_name

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Deny a workload, node, key or method at once, or restrict a workload. One emergency key can deny; only the "
    "quorum can allow.",
)

_DEVELOPMENT_KEY: Final = "emergency-1.pem"

TtlOption = Annotated[
    str, typer.Option(help=f"How long: 90s, 30m, 1h, 7d; at most {limits.MAX_REVOCATION_TTL_S // 86_400}d.")
]
ReasonOption = Annotated[str, typer.Option(help="Why, in one line; callers that are refused see it.")]
KeyOption = Annotated[
    str,
    typer.Option(
        help="Your emergency key: a file, or a signer URI. Default: that of a development domain.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--output", help="Write the signed directive and send it to nobody.")
]


@app.command()
def workload(
    name: Annotated[str, typer.Argument(help="Its name or SPIFFE ID.")],
    ttl: TtlOption = "1h",
    reason: ReasonOption = "",
    key: KeyOption = "",
    output: OutOption = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deny every call by workload NAME, and every call to what it serves."""
    _revoke(Kind.WORKLOAD, name, ttl, reason, key=key, output=output, mesh=mesh, as_json=as_json)


@app.command()
def node(
    name: Annotated[str, typer.Argument(help="Its name or SPIFFE ID.")],
    ttl: TtlOption = "1h",
    reason: ReasonOption = "",
    key: KeyOption = "",
    output: OutOption = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deny node NAME: it refuses everything itself, and others accept neither its permits nor its word."""
    _revoke(Kind.NODE, name, ttl, reason, key=key, output=output, mesh=mesh, as_json=as_json)


@app.command("key")
def public_key(
    key_or_file: Annotated[
        str, typer.Argument(help="SHA-256 of the public key, or a file: certificate, PEM, NAME.pub.json.")
    ],
    ttl: TtlOption = "1h",
    reason: ReasonOption = "",
    key: KeyOption = "",
    output: OutOption = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deny whoever shows a certificate with this public key, and every permit that it signed."""
    value = fingerprint(Path(key_or_file)) if Path(key_or_file).is_file() else key_or_file
    _revoke(Kind.KEY, value, ttl, reason, key=key, output=output, mesh=mesh, as_json=as_json)


@app.command()
def method(
    name: Annotated[str, typer.Argument(help="package.Service/Method, or package.Service/* for all.")],
    ttl: TtlOption = "1h",
    reason: ReasonOption = "",
    key: KeyOption = "",
    output: OutOption = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deny every call of a method, on every service."""
    _revoke(Kind.METHOD, name, ttl, reason, key=key, output=output, mesh=mesh, as_json=as_json)


@app.command()
def throttle(
    name: Annotated[str, typer.Argument(help="Workload: its name or SPIFFE ID.")],
    rate: Annotated[str, typer.Argument(help="Calls per s, m, h or d, for example 10/m.")],
    ttl: TtlOption = "1h",
    reason: ReasonOption = "",
    key: KeyOption = "",
    output: OutOption = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let workload NAME call only so often, at every sidecar that its calls pass (levels 2 and above)."""
    value = f"{name} {rate}"
    _revoke(Kind.THROTTLE, value, ttl, reason, key=key, output=output, mesh=mesh, as_json=as_json)


@app.command()
def approval(
    name: Annotated[str, typer.Argument(help="Workload: its name or SPIFFE ID.")],
    needed: Annotated[str, typer.Argument(help='How many of which approvers, for example "1 of ops".')],
    ttl: TtlOption = "1h",
    reason: ReasonOption = "",
    key: KeyOption = "",
    output: OutOption = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let workload NAME call only with approval of each call (levels 2 and above; see egm approvals)."""
    value = f"{name} {needed}"
    _revoke(Kind.APPROVAL, value, ttl, reason, key=key, output=output, mesh=mesh, as_json=as_json)


@app.command()
def send(
    file: Annotated[
        Path, typer.Argument(help="A directive that was signed elsewhere (-o FILE).", exists=True)
    ],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Hand in a signed directive: to the control plane and every node at once, one that is reached is enough."""
    data = read_given(file, limits.MAX_REVOCATION_BYTES)
    book, directory = open_mesh(mesh)
    _hand_in(book, directory, read_directive(data), data, as_json=as_json)


@app.command("list")
def list_denials(mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """List what is denied now, by whom, until when. Asks the control plane, else the first node that answers."""
    who, found = _denials(*open_mesh(mesh))
    now_ms = SystemClock().now_ms()

    def text() -> None:
        keys = ", ".join(found.emergency_keys) or "none: nobody can revoke at once"
        console.print(f"told by {who}; emergency keys of the policy in force: {keys}")
        if not found.denials:
            console.print("nothing is denied")
            return
        table(
            ("denied", "by", "left", "why", "id"),
            (
                (
                    f"{one.kind} {one.value}",
                    one.key_name or one.by,
                    left(one.until_ms, now_ms),
                    one.why,
                    one.id[:16] or "-",
                )
                for one in found.denials
            ),
        )

    emit(
        {
            "answered": who,
            "emergency_keys": list(found.emergency_keys),
            "denials": [entry(one) for one in found.denials],
        },
        as_json=as_json,
        text=text,
    )


@app.command()
def lift(
    directive: Annotated[str, typer.Argument(help="Its id, or the beginning of it (egm revoke list).")],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Propose to end a revocation before its time. No key lifts it: to allow again takes the approvers' quorum."""
    book, directory = open_mesh(mesh)
    one = _named(_denials(book, directory)[1], directive)
    if one.by != "emergency":
        hint = "egm node release" if one.by == "proof" else "take it out of revocations in bundle.yaml"
        raise InputError(
            Reason.INPUT_INVALID, f"{one.kind} {one.value} is not denied by an emergency key: {hint}"
        )
    propose(
        book,
        directory,
        lambda archive, settings: amend.ended(archive, settings, [one.id]),
        title=f"End the revocation of {one.kind} {one.value}",
        keep=f"ended_revocations: [{one.id}]",
        as_json=as_json,
    )


@app.command()
def keep(
    directive: Annotated[str, typer.Argument(help="Its id, or the beginning of it (egm revoke list).")],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Propose to make a revocation permanent: the approvers sign it, and it no longer ends by itself."""
    book, directory = open_mesh(mesh)
    one = _named(_denials(book, directory)[1], directive)
    reason = one.why.partition(": ")[2][: limits.MAX_REVOCATION_REASON_CHARS] or "made permanent"
    propose(
        book,
        directory,
        lambda archive, settings: amend.kept(
            archive, settings, kind=one.kind, value=one.value, reason=reason
        ),
        title=f"Revoke {one.kind} {one.value} permanently",
        keep=f'revocations: [{{kind: {one.kind}, value: "{one.value}", reason: "{reason}"}}]',
        as_json=as_json,
    )


def entry(one: gossip_pb2.DenialEntry) -> dict[str, object]:
    """Return a denial as JSON values."""
    return {
        "kind": one.kind,
        "value": one.value,
        "by": one.by,
        "reason": one.reason,
        "why": one.why,
        "id": one.id,
        "key": one.key_name,
        "until_ms": one.until_ms,
        "since_ms": one.since_ms,
    }


def revoke_node(name: str, ttl: str, reason: str, *, key: str, mesh: Path | None, as_json: bool) -> None:
    """Deny a node, as `egm revoke node`."""
    _revoke(Kind.NODE, name, ttl, reason, key=key, output=None, mesh=mesh, as_json=as_json)


def _revoke(
    kind: Kind,
    value: str,
    ttl: str,
    reason: str,
    *,
    key: str,
    output: Path | None,
    mesh: Path | None,
    as_json: bool,
) -> None:
    book, directory = open_mesh(mesh)
    if not reason.strip():
        raise InputError(Reason.INPUT_INVALID, 'say why in one line: --reason "..."; those refused will ask')
    subject = subject_of(kind, value, book.trust_domain)
    ref = key or _development_key(book)
    signer = load_signer(ref, passphrase_for(ref))
    public = signer.public_key
    if public.keytype != "ed25519":
        raise InputError(Reason.KEY_UNSAFE, f"{ref} is {public.scheme}; an emergency key is Ed25519")
    now_ms = SystemClock().now_ms()
    try:
        directive = Directive(
            book.trust_domain,
            now_ms,
            subject,
            now_ms // 1000,
            now_ms // 1000 + seconds(ttl, "--ttl"),
            reason.strip(),
        )
        data = sign_directive(
            directive,
            check_name(key_name(public)),
            lambda text: bytes.fromhex(signer.sign(text).signature),
            public_key=bytes.fromhex(public.keyval["public"]),
        )
    except EvidenceError as error:
        raise InputError(Reason.INPUT_INVALID, error.detail) from None
    if output is not None:
        write_atomic(output, data)
        text = f"{output}: {subject} until {iso(directive.until_s * 1000)}; hand it in with: egm revoke send {output}"
        emit({"id": directive.id, "file": str(output)}, as_json=as_json, text=text)
        return
    _hand_in(book, directory, directive, data, as_json=as_json)


def _hand_in(book: MeshFile, directory: Path, directive: Directive, data: bytes, *, as_json: bool) -> None:
    answers = run(EmergencyClient(book, directory).revoke(data))
    taken = [one for one in answers if one.error is None]
    refused = [one for one in answers if one.error is not None and one.reached]
    away = [one.member for one in answers if not one.reached]
    note = unknown_name(book, directive.subject)

    def text() -> None:
        until = iso(directive.until_s * 1000)
        if taken:
            verb = "restricted:" if directive.subject.restricts else "revoked"
            console.print(f"{verb} {directive.subject} until {until} (id {directive.id[:16]})")
            console.print(f"  in effect at {', '.join(one.member for one in taken)}; they tell the others")
        if note:
            console.print(f"  {note}", markup=False, soft_wrap=True)
        for one in refused:
            console.print(f"  refused by {one.member}: {one.error}", soft_wrap=True)
        if away:
            console.print(f"  not reached: {', '.join(away)}")

    emit(
        {
            "id": directive.id,
            "kind": directive.subject.kind,
            "value": directive.subject.value,
            "until_ms": directive.until_s * 1000,
            "in_effect": [one.member for one in taken],
            "refused": {one.member: str(one.error) for one in refused},
            "not_reached": away,
            "note": note,
        },
        as_json=as_json,
        text=text,
    )
    raise typer.Exit(_exit(answers))


def unknown_name(book: MeshFile, subject: Subject) -> str:
    """Return what to tell whoever may have mistyped a name in a hurry; "" when it is known, or cannot be judged.

    It is denied all the same: an address book need not know everybody.
    """
    services = {name for entry in book.nodes.values() for name in entry.inbound}
    known = {Kind.NODE: set(book.nodes), Kind.WORKLOAD: set(book.workloads) | services}.get(
        Kind.WORKLOAD if subject.restricts else subject.kind
    )
    name = subject.value.partition(" ")[0]
    if not known or name in known:
        return ""
    return f"mesh.json knows no {name!r}; check the spelling. It knows {', '.join(sorted(known))}"


def _exit(answers: list[Answer]) -> Exit:
    if any(one.error is None for one in answers):
        return Exit.YES
    return Exit.NO if any(one.reached for one in answers) else Exit.UNKNOWN


def _denials(book: MeshFile, directory: Path) -> tuple[str, gossip_pb2.ListDenialsResponse]:
    return run(EmergencyClient(book, directory).denials())


def _named(found: gossip_pb2.ListDenialsResponse, prefix: str) -> gossip_pb2.DenialEntry:
    matching = [one for one in found.denials if one.id and one.id.startswith(prefix.lower())]
    if len(matching) != 1 or not prefix:
        what = "several revocations begin" if matching else "no revocation begins"
        raise InputError(Reason.NOT_FOUND, f"{what} with {prefix[:64]!r}; see 'egm revoke list'")
    return matching[0]


def _development_key(book: MeshFile) -> str:
    path = None if book.domain is None else Path(book.domain) / "keys" / _DEVELOPMENT_KEY
    if path is None or not path.is_file():
        raise InputError(
            Reason.INPUT_INVALID,
            "with which key? give --key NAME.pem; 'egm keys new NAME --purpose emergency' makes one, which the "
            "approvers then name in bundle.yaml (emergency_keys)",
        )
    return str(path)
