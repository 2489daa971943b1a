"""`egm init`: make a trust domain, at once for development or as a ceremony of its key holders."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag
from control_plane.cli.output import Exit, console, emit
from control_plane.edge.domain import (
    DEFAULT_TRUST_DOMAIN,
    Ceremony,
    Domain,
    create_development,
    describe_root,
    open_domain,
)
from control_plane.edge.given_file import read_given
from trust import limits
from trust.authoring import Holders
from trust.edge.keyfiles import load_public
from trust.errors import InputError, Reason

app = typer.Typer(add_completion=False)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where the trust domain will be.")],
    trust_domain: Annotated[str, typer.Option(help="Its name, as in SPIFFE IDs.")] = DEFAULT_TRUST_DOMAIN,
    development: Annotated[
        bool, typer.Option("--development", help="Make every key here, in one go. Not for production.")
    ] = False,
    approvers: Annotated[int, typer.Option(help="How many approver keys (--development).", min=1)] = 3,
    threshold: Annotated[int, typer.Option(help="How many approvers must sign policy.", min=1)] = 2,
    root_keys: Annotated[int, typer.Option(help="How many root keys (--development).", min=1)] = 3,
    root_threshold: Annotated[int, typer.Option(help="How many root holders must sign.", min=1)] = 2,
    root_key: Annotated[
        list[Path] | None, typer.Option(help="NAME.pub.json of a root holder; repeat.")
    ] = None,
    approver_key: Annotated[
        list[Path] | None, typer.Option(help="NAME.pub.json of an approver; repeat.")
    ] = None,
    signed: Annotated[
        list[Path] | None, typer.Option(help="A copy of the root that a holder signed elsewhere; repeat.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a trust domain: root and approver keys, control-plane keys, root metadata, CA.

    Without --development: every holder runs 'egm keys new' and hands over NAME.pub.json; run this with all of
    them; every root holder then runs 'egm keys sign-root'; run this again to finish. Exit code 1 while
    signatures are missing.
    """
    if development:
        if root_key or approver_key or signed:
            raise InputError(
                Reason.INPUT_INVALID,
                "--development makes all keys itself; leave out --root-key, --approver-key and --signed",
            )
        domain = create_development(
            directory,
            trust_domain=trust_domain,
            approvers=approvers,
            threshold=threshold,
            root_keys=root_keys,
            root_threshold=root_threshold,
        )
        _report(domain, as_json=as_json)
        return
    if (directory / "domain.json").is_file():
        if open_domain(directory).complete:
            _report(open_domain(directory), as_json=as_json)
            return
        ceremony = Ceremony.open(directory)
    else:
        root, people = _holders(root_key, root_threshold), _holders(approver_key, threshold)
        ceremony = Ceremony.start(directory, trust_domain=trust_domain, root=root, approvers=people)
    for path in signed or ():
        ceremony.merge(read_given(path, limits.MAX_METADATA_BYTES))
    if ceremony.quorum.met:
        _report(ceremony.finish(), as_json=as_json)
        return
    _report_waiting(ceremony, as_json=as_json)
    raise typer.Exit(Exit.NO)


def _holders(keys: list[Path] | None, threshold: int) -> Holders:
    if not keys:
        raise InputError(
            Reason.INPUT_INVALID,
            "give the holders' public keys (--root-key NAME.pub.json … --approver-key NAME.pub.json …; "
            "each holder makes theirs with 'egm keys new NAME'), or use --development",
        )
    return Holders([load_public(path) for path in keys], threshold)


def _report(domain: Domain, *, as_json: bool) -> None:
    root = domain.root().signed
    data: dict[str, object] = {
        "directory": str(domain.directory),
        "complete": True,
        "root": str(domain.root_path),
        **describe_root(root),
    }

    def text() -> None:
        console.print(
            f"trust domain {domain.trust_domain} is ready in {domain.directory}", markup=False, soft_wrap=True
        )
        for role, meaning in (("root", "replace keys"), ("targets", "approve policy")):
            holders = root.roles[role]
            count = f"{holders.threshold} of {len(holders.keyids)}"
            console.print(f"  {count} must sign to {meaning}", markup=False, soft_wrap=True)
        console.print(f"  trust anchor for nodes: {domain.root_path}", markup=False, soft_wrap=True)
        console.print(f"  for the control plane alone: {domain.online_directory}, {domain.ca_directory}")
        if domain.development:
            console.print("  development domain: all private keys are on this machine")
        else:
            passphrase = domain.online_directory / "passphrase"
            console.print(f"  move {passphrase} to your secret store (online_keys.passphrase_file)")

    emit(data, as_json=as_json, text=text)


def _report_waiting(ceremony: Ceremony, *, as_json: bool) -> None:
    quorum, domain = ceremony.quorum, ceremony.domain
    data: dict[str, object] = {
        "directory": str(domain.directory),
        "complete": False,
        "unsigned_root": str(domain.unsigned_root_path),
        "threshold": quorum.threshold,
        "signed": [quorum.name(key_id) for key_id in quorum.signed],
        "missing": [quorum.name(key_id) for key_id in quorum.missing],
    }

    def text() -> None:
        console.print(
            f"the root of {domain.trust_domain} waits for signatures: {quorum.explain()}", markup=False
        )
        console.print("next, every root holder, on the machine with their key:")
        console.print(
            f"  egm keys sign-root {domain.unsigned_root_path} --key NAME.pem", markup=False, soft_wrap=True
        )
        console.print("then, with copies signed elsewhere as --signed FILE:")
        console.print(f"  egm init {domain.directory}", markup=False, soft_wrap=True)

    emit(data, as_json=as_json, text=text)
