"""`egm keys`: make, show and list keys, sign root metadata, replace keys."""

import enum
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root

from control_plane.cli.context import JsonFlag
from control_plane.cli.output import console, emit, table
from control_plane.edge.domain import describe_root, open_domain
from control_plane.edge.given_file import read_given
from trust import limits
from trust.auditor import AuditorKey
from trust.authoring import digest_of, find_key, next_root, parse_metadata, sign
from trust.edge.auditor_keys import create_auditor_key, is_auditor_public, load_auditor_public
from trust.edge.clock import SystemClock
from trust.edge.files import write_atomic
from trust.edge.keyfiles import (
    PASSPHRASE_FILE_VARIABLE,
    PASSPHRASE_VARIABLE,
    create_key,
    load_public,
    load_signer,
    passphrase_from_environment,
    passphrase_source,
    public_path_of,
)
from trust.errors import InputError, Reason
from trust.keys import key_name
from trust.metadata import ONLINE_ROLES, check, check_root, lint_rotation
from trust.metadata_diff import HolderChange, holder_changes
from trust.quorum import Quorum, keys_of, quorum_of
from trust.verified import BASE_ROLE

app = typer.Typer(add_completion=False, no_args_is_help=True)


class Purpose(enum.StrEnum):
    """What a key is for."""

    SIGNING = "signing"  # of root metadata and policy
    AUDITOR = "auditor"  # reading sealed payloads
    EMERGENCY = "emergency"  # denying at once: egm revoke
    APPROVALS = "approvals"  # of single calls: egm approvals


DomainOption = Annotated[Path, typer.Option("--domain", help="Directory of the trust domain (egm init).")]


@app.callback()
def keys() -> None:
    """Make, show and rotate root and approver keys."""


def passphrase_for(key: str) -> Callable[[], bytes]:
    """Return where the passphrase (or PIN) of `key` comes from: environment, development file, or a prompt."""
    return passphrase_source(Path(key), lambda: _ask(f"Passphrase of {key}", confirm=False))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Who holds it, for example approver-1.")],
    directory: Annotated[Path, typer.Option("--dir", help="Where NAME.pem will be.")] = Path(),
    purpose: Annotated[
        Purpose,
        typer.Option(
            help="signing: root and policy; emergency: revoke at once; approvals: of single calls (all Ed25519); "
            "auditor: read payloads (X25519)."
        ),
    ] = Purpose.SIGNING,
    as_json: JsonFlag = False,
) -> None:
    """Make a key pair of your own: NAME.pem (encrypted, mode 0600) and NAME.pub.json to hand over."""
    path = directory / f"{name}.pem"
    given = passphrase_from_environment()
    passphrase = given if given is not None else _ask(f"New passphrase for {path}", confirm=True)
    if purpose is Purpose.AUDITOR:
        auditor = create_auditor_key(path, name, passphrase)
        record = {**_auditor_record(auditor), "private": str(path), "public": str(public_path_of(path))}
        text = f"{path}: keep it\n{record['public']}: hand this one over\n{_for_bundle(auditor)}"
        emit(record, as_json=as_json, text=text)
        return
    public = create_key(path, name, passphrase)
    data = {**_key_record(public), "private": str(path), "public": str(public_path_of(path))}
    text = f"{path}: keep it\n{data['public']}: hand this one over"
    if purpose is Purpose.EMERGENCY:
        data["bundle"] = f"emergency_keys: {{{name}: {public.keyval['public']}}}"
        text += f"\nin bundle.yaml of the base bundle, for the approvers to sign:\n  {data['bundle']}"
    if purpose is Purpose.APPROVALS:
        data["bundle"] = f"approver_groups: {{GROUP: {{{name}: {public.keyval['public']}}}}}"
        text += f"\nin bundle.yaml of the base bundle, for the quorum to sign:\n  {data['bundle']}"
    emit(data, as_json=as_json, text=text)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="NAME.pub.json.")],
    as_json: JsonFlag = False,
) -> None:
    """Show a public key, to compare its id by voice before it is trusted."""
    if is_auditor_public(file):
        auditor = load_auditor_public(file)
        text = f"{auditor.name}  X25519\nkey id  {auditor.id}\n{_for_bundle(auditor)}"
        emit(_auditor_record(auditor), as_json=as_json, text=text)
        return
    public = load_public(file)
    data = _key_record(public)
    text = f"{data['name']}  {data['scheme']}\nkey id  {data['key_id']}"
    if public.scheme == "ed25519":  # what emergency_keys and approver_groups of bundle.yaml want
        data["public"] = public.keyval["public"]
        text += f"\nin bundle.yaml, where a key of this purpose is named  {data['name']}: {data['public']}"
    emit(data, as_json=as_json, text=text)


@app.command("list")
def list_keys(domain: DomainOption, as_json: JsonFlag = False) -> None:
    """List who may sign what, as the root metadata of the domain says."""
    root = open_domain(domain).root().signed

    def text() -> None:
        rows = [
            (
                role,
                f"{root.roles[role].threshold} of {len(root.roles[role].keyids)}",
                key_name(key),
                key.scheme,
                key_id[:16],
            )
            for role in ("root", BASE_ROLE, *ONLINE_ROLES)
            for key_id, key in keys_of(root, role).items()
        ]
        console.print(
            f"root version {root.version}, expires {root.expires:%Y-%m-%d}", markup=False, soft_wrap=True
        )
        table(("role", "needs", "name", "scheme", "key id"), rows)

    emit(describe_root(root), as_json=as_json, text=text)


@app.command("sign-root")
def sign_root(
    root: Annotated[Path, typer.Argument(help="Root metadata to sign; the signature is added to it.")],
    key: Annotated[
        str, typer.Option(help="Your private key: a file, or a signer URI (hsm:, awskms:, ...).")
    ] = "",
    check_only: Annotated[
        bool, typer.Option("--check", help="Show what the root says and do not sign it.")
    ] = False,
    domain: Annotated[
        Path | None, typer.Option(help="Trust domain whose root this one replaces (rotation).")
    ] = None,
    previous: Annotated[
        Path | None, typer.Option(help="The root that this one replaces, if not the domain's.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Sign root metadata with your key. Shows first who may sign what under it, then who has not signed yet."""
    if not key and not check_only:
        raise InputError(Reason.INPUT_INVALID, "give --key NAME.pem to sign, or --check to look only")
    metadata = _root_at(root)
    before = _previous(metadata, domain, previous)
    if before is not None:
        check(lint_rotation(before, metadata.signed))
    check_root(metadata.signed, now_ms=SystemClock().now_ms())
    changes = holder_changes(before, metadata.signed)
    if not as_json:
        _show_changes(root, metadata, changes)
    if check_only:
        emit(_changes_record(root, metadata, changes), as_json=as_json, text=lambda: None)
        return
    delegators = [d for d in (before, metadata.signed) if d is not None]
    signer = load_signer(key, passphrase_for(key))
    metadata = sign(metadata, signer, delegators)
    write_atomic(root, metadata.to_bytes())
    quorums = {"new": quorum_of(metadata.signed, "root", metadata)}
    if before is not None:
        quorums["previous"] = quorum_of(before, "root", metadata)
    _report_signatures(root, metadata, quorums, as_json=as_json)


@app.command()
def rotate(
    domain: DomainOption,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the unsigned new root will be.")],
    role: Annotated[
        str, typer.Option(help="targets (the approvers), root, snapshot or timestamp.")
    ] = BASE_ROLE,
    remove: Annotated[list[str] | None, typer.Option(help="Name or id of a key to remove; repeat.")] = None,
    add: Annotated[list[Path] | None, typer.Option(help="NAME.pub.json to add; repeat.")] = None,
    threshold: Annotated[int | None, typer.Option(help="New threshold.", min=1)] = None,
    previous: Annotated[
        Path | None, typer.Option(help="The root in force, if it is newer than the domain's.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Replace keys: make the next root version. The old and the new root quorum must both sign it.

    Policy in force must still have its quorum under the new root: when an approver leaves, let those who stay sign
    a new policy version first.
    """
    if not remove and not add and threshold is None:
        raise InputError(Reason.INPUT_INVALID, "nothing to change: give --remove, --add or --threshold")
    if output.exists():
        raise InputError(Reason.CONFLICT, f"{output} exists; choose another name")
    opened = open_domain(domain)
    current = opened.root() if previous is None else _root_at(previous)
    metadata = next_root(
        current,
        now_ms=SystemClock().now_ms(),
        role=role,
        add=[load_public(path) for path in add or ()],
        remove=[find_key(current.signed, role, text).keyid for text in remove or ()],
        threshold=threshold,
    )
    write_atomic(output, metadata.to_bytes())
    quorums = {
        "new": quorum_of(metadata.signed, "root", metadata),
        "previous": quorum_of(current.signed, "root", metadata),
    }
    _report_signatures(output, metadata, quorums, as_json=as_json)


@app.command("adopt-root")
def adopt_root(
    root: Annotated[Path, typer.Argument(help="Signed root metadata, after its publication.")],
    domain: DomainOption,
    as_json: JsonFlag = False,
) -> None:
    """Make a published root the trust anchor of the domain directory; both quorums are checked."""
    metadata = open_domain(domain).adopt_root(read_given(root, limits.MAX_METADATA_BYTES))
    version = metadata.signed.version
    emit(describe_root(metadata.signed), as_json=as_json, text=f"trust anchor is now root version {version}")


def _show_changes(path: Path, metadata: Metadata[Root], changes: list[HolderChange]) -> None:
    console.print(
        f"root version {metadata.signed.version} in {path}, digest {digest_of(metadata)}", soft_wrap=True
    )
    for change in changes:
        console.print(
            f"  {change.what}: {change.before or '(none)'} -> {change.after or '(none)'}", soft_wrap=True
        )


def _changes_record(path: Path, metadata: Metadata[Root], changes: list[HolderChange]) -> dict[str, object]:
    return {
        "root": str(path),
        "version": metadata.signed.version,
        "digest": digest_of(metadata),
        "holders": [asdict(change) for change in changes],
    }


def _previous(metadata: Metadata[Root], domain: Path | None, previous: Path | None) -> Root | None:
    if metadata.signed.version == 1:
        return None
    if previous is not None:
        before = _root_at(previous).signed
    elif domain is not None:
        before = open_domain(domain).root().signed
    else:
        raise InputError(
            Reason.INPUT_INVALID,
            f"this is root version {metadata.signed.version}: name the one it replaces with --domain or --previous",
        )
    if before.version + 1 != metadata.signed.version:
        raise InputError(
            Reason.INPUT_INVALID,
            f"root version {metadata.signed.version} does not replace version {before.version}; use --previous",
        )
    return before


def _report_signatures(
    path: Path, metadata: Metadata[Root], quorums: dict[str, Quorum], *, as_json: bool
) -> None:
    done = all(quorum.met for quorum in quorums.values())
    data: dict[str, object] = {
        "root": str(path),
        "version": metadata.signed.version,
        "complete": done,
        "quorums": {
            name: {
                "threshold": quorum.threshold,
                "signed": [quorum.name(key_id) for key_id in quorum.signed],
                "missing": [quorum.name(key_id) for key_id in quorum.missing],
            }
            for name, quorum in quorums.items()
        },
    }

    replaces = " --previous ROOT.JSON_IN_FORCE" if metadata.signed.version > 1 else ""

    def text() -> None:
        console.print(f"root version {metadata.signed.version} in {path}", markup=False, soft_wrap=True)
        for name, quorum in quorums.items():
            console.print(f"  {name} root holders: {quorum.explain()}", markup=False, soft_wrap=True)
        console.print(
            "  complete" if done else f"  next  egm keys sign-root {path}{replaces} --key NAME.pem",
            markup=False,
        )

    emit(data, as_json=as_json, text=text)


def _key_record(key: Key) -> dict[str, object]:
    return {"name": key_name(key), "scheme": key.scheme, "key_id": key.keyid}


def _auditor_record(key: AuditorKey) -> dict[str, object]:
    return {"name": key.name, "scheme": "x25519", "key_id": key.id, "key": key.text}


def _for_bundle(key: AuditorKey) -> str:
    return f"in bundle.yaml  auditors: {{{key.name}: {key.text}}}"


def _ask(prompt: str, *, confirm: bool) -> bytes:
    if not console.is_terminal:
        raise InputError(
            Reason.KEY_UNREADABLE,
            f"no terminal to ask for a passphrase; set {PASSPHRASE_VARIABLE} or {PASSPHRASE_FILE_VARIABLE}",
        )
    answer = typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return str(answer).encode()


def _root_at(path: Path) -> Metadata[Root]:
    return parse_metadata(read_given(path, limits.MAX_METADATA_BYTES), Root)
