"""Whether a proposed bundle could be enforced: it reads, compiles with what is in force, lints and passes its tests."""

from collections.abc import Mapping

from trust.bundle import Bundle, read_bundle
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.policy.casetests import run_tests
from trust.policy.engine import Engine
from trust.policy.lint import lint
from trust.policy.problems import errors_of
from trust.policy.self_test import check_forbidden
from trust.verified import BASE_ROLE

_MAX_SHOWN = 20


def check_bundles(role: str, archive: bytes, others: Mapping[str, bytes], *, trust_domain: str) -> Bundle:
    """Return the proposed bundle of `role`, if nodes could enforce it together with `others`.

    Takes seconds for a large bundle: call it in a thread.

    Args:
        role: "targets" or a namespace.
        archive: the proposed archive.
        others: role to archive of everything else that is in force and stays delegated.
        trust_domain: whose control plane this is.

    Raises:
        InputError: INPUT_INVALID, one problem per line, each with file and line.
        EvidenceError: from the reader or the engine.
        StateError: POLICY_MISSING, for a namespace without a base.
    """
    proposed = read_bundle(archive, role=role)
    read = {name: read_bundle(data, role=name) for name, data in others.items()}
    base = proposed if role == BASE_ROLE else read.pop(BASE_ROLE, None)
    if base is None or base.mesh is None:
        raise EvidenceError(Reason.POLICY_MISSING, "publish a base policy before a namespace")
    if base.mesh.trust_domain != trust_domain:
        raise EvidenceError(
            Reason.BUNDLE_MALFORMED,
            f"mesh.json is for trust domain {base.mesh.trust_domain!r}, this is {trust_domain!r}: "
            "set trust_domain in bundle.yaml",
        )
    namespaces = {name: bundle for name, bundle in read.items() if name != BASE_ROLE}
    if role != BASE_ROLE:
        namespaces[role] = proposed
    problems = [
        str(problem) for problem in errors_of(lint(proposed, base=None if role == BASE_ROLE else base))
    ]
    _refuse(problems)
    try:
        engine = Engine.build(base, namespaces)
        check_forbidden(engine)
    except MeshError as error:
        if namespaces and role == BASE_ROLE:
            raise EvidenceError(
                error.reason, f"{error.detail} (compiled together with {', '.join(sorted(namespaces))})"
            ) from None
        raise
    if not base.mesh.auditors and (asking := engine.payload_policies()):
        _refuse([f'bundle.yaml: auditors: none, but {name} says @audit("payload")' for name in asking])
    results = run_tests(proposed, None if role == BASE_ROLE else base)
    _refuse([f"{r.file}:{r.line}: case {r.name!r} fails: {r.message}" for r in results if not r.passed])
    return proposed


def _refuse(problems: list[str]) -> None:
    if problems:
        more = [f"and {len(problems) - _MAX_SHOWN} more"] if len(problems) > _MAX_SHOWN else []
        raise InputError(Reason.INPUT_INVALID, "\n".join(problems[:_MAX_SHOWN] + more))
