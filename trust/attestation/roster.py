"""Who may vouch for nodes, and how many of them it takes: the witness roster of `mesh.json`.

A quorum that two sides of a partition could both reach is refused here, at authoring and at load, unless the signed
policy says why it is wanted.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trust import limits
from trust.address import split_address
from trust.compact import write_object
from trust.errors import EvidenceError
from trust.note import KeyKind, Verifier
from trust.spiffe import check_name

WITNESS_KIND: Final = "witness"
_URL: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~/-]*)?\Z")
_MAX_URL_CHARS: Final = 255
_MAX_WHY_CHARS: Final = 200


def _key(text: str) -> str:
    try:
        verifier = Verifier.parse(text)
    except EvidenceError as error:
        raise ValueError(error.detail) from None
    if verifier.kind is not KeyKind.COSIGNATURE_V1:
        raise ValueError("this is not a witness key (C2SP cosignature/v1); a node shows its own: witness-key")
    return text


def _address(text: str) -> str:
    split_address(text)
    return text


def _url(text: str) -> str:
    if len(text) > _MAX_URL_CHARS or _URL.match(text) is None:
        raise ValueError(f"{text[:80]!r} is not a submission prefix; write https://HOST[:PORT][/PATH]")
    return text


def _why(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("say in one printable line why two sides of a partition may both hold the quorum")
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WitnessSettings(_Strict):
    """A node that vouches for others. `key` is its node key, as `egm sidecar witness-key` prints it.

    What is pinned here holds for the node's own statements, too: no certificate can put another key in its place.
    """

    key: Annotated[str, AfterValidator(_key)]
    # HOST:PORT of its admin listener; without it each node's own configuration must know one (peers)
    address: Annotated[str, AfterValidator(_address)] | None = None


class LogWitnessSettings(_Strict):
    """A third party that cosigns ledgers (C2SP tlog-witness). It sees tree heads, no evidence."""

    key: Annotated[str, AfterValidator(_key)]
    url: Annotated[str, AfterValidator(_url)]


class AttestationSettings(_Strict):
    """How nodes are attested. Without it level 5 is in force without attestation."""

    witnesses: dict[str, WitnessSettings] = Field(min_length=1, max_length=limits.MAX_WITNESSES)
    quorum: int | None = Field(default=None, ge=1, le=limits.MAX_WITNESSES)  # default: the majority
    ttl_s: int = Field(default=60, ge=limits.MIN_ATTESTATION_TTL_S, le=limits.MAX_ATTESTATION_TTL_S)
    max_lag_s: int = Field(default=30, ge=0, le=limits.MAX_ATTESTATION_LAG_S)
    log_witnesses: dict[str, LogWitnessSettings] = Field(
        default_factory=dict, max_length=limits.MAX_LOG_WITNESSES
    )
    log_quorum: int = Field(default=0, ge=0)
    allow_split_quorum: Annotated[str, AfterValidator(_why)] | None = Field(
        default=None, max_length=_MAX_WHY_CHARS
    )

    @property
    def needed(self) -> int:
        """How many witnesses must vouch for a node."""
        return len(self.witnesses) // 2 + 1 if self.quorum is None else self.quorum

    @model_validator(mode="after")
    def _is_a_quorum(self) -> "AttestationSettings":
        named: dict[str, WitnessSettings | LogWitnessSettings] = {**self.witnesses, **self.log_witnesses}
        for name in named:
            check_name(name)
        if len(named) != len(self.witnesses) + len(self.log_witnesses):
            raise ValueError("a name is both among witnesses and log_witnesses")
        keys: dict[bytes, str] = {}
        for name, settings in named.items():
            other = keys.setdefault(Verifier.parse(settings.key).public_key, name)
            if other != name:
                raise ValueError(f"{other} and {name} have the same key: one holder would count twice")
        count, needed = len(self.witnesses), self.needed
        if needed > count:
            raise ValueError(f"quorum {needed} of {count} witnesses can never be reached")
        if 2 * needed <= count and self.allow_split_quorum is None:
            raise ValueError(
                f"quorum {needed} of {count}: two sides of a partition could both reach it; use {count // 2 + 1} or "
                'more (or leave quorum out), or say why it is wanted: allow_split_quorum: "..."'
            )
        if self.log_quorum > len(self.log_witnesses):
            raise ValueError(
                f"log_quorum {self.log_quorum} of {len(self.log_witnesses)} log_witnesses can never be reached"
            )
        return self


@dataclass(frozen=True, slots=True)
class Witness:
    """One witness: its name, its key as it stands under checkpoints, and where it answers (empty: not said)."""

    name: str
    key: Verifier
    address: str  # HOST:PORT, or the submission prefix of a log witness


@dataclass(frozen=True, slots=True)
class Roster:
    """The witnesses of the policy in force. Every holder is one key, and every key one holder."""

    trust_domain: str
    witnesses: Mapping[str, Witness]
    needed: int  # cosignatures of distinct witnesses
    log_witnesses: Mapping[str, Witness]
    log_needed: int
    ttl_ms: int
    max_lag_ms: int
    digest: str  # of all of it: what was verified under another roster must be verified again
    struck: frozenset[str] = (
        frozenset()
    )  # whose word does not count: they are revoked, or convicted by a proof

    @classmethod
    def of(cls, settings: AttestationSettings, trust_domain: str) -> "Roster":
        """Return the roster of validated settings."""
        return cls(
            trust_domain=trust_domain,
            witnesses={
                name: Witness(name, Verifier.parse(one.key), one.address or "")
                for name, one in sorted(settings.witnesses.items())
            },
            needed=settings.needed,
            log_witnesses={
                name: Witness(name, Verifier.parse(one.key), one.url)
                for name, one in sorted(settings.log_witnesses.items())
            },
            log_needed=settings.log_quorum,
            ttl_ms=settings.ttl_s * 1000,
            max_lag_ms=settings.max_lag_s * 1000,
            digest=hashlib.sha256(
                write_object({"td": trust_domain, **settings.model_dump(mode="json")})
            ).hexdigest(),
        )

    def without(self, names: Iterable[str]) -> "Roster":
        """Return the roster in which the word of `names` does not count, whenever it was given.

        The quorum stays what was signed: with fewer witnesses more of them must agree, never fewer. Their keys stay
        known: a struck witness's own node keeps its pinned key, and can still be convicted.

        Args:
            names: witnesses and log witnesses; others are passed over.
        """
        struck = self.struck | ({*names} & (self.witnesses.keys() | self.log_witnesses.keys()))
        if struck == self.struck:
            return self
        digest = hashlib.sha256(write_object({"of": self.digest, "struck": sorted(struck)})).hexdigest()
        return replace(self, struck=struck, digest=digest)

    @property
    def counting(self) -> Mapping[str, Witness]:
        """The witnesses whose word counts."""
        return {name: one for name, one in self.witnesses.items() if name not in self.struck}

    @property
    def log_counting(self) -> Mapping[str, Witness]:
        """The log witnesses whose word counts."""
        return {name: one for name, one in self.log_witnesses.items() if name not in self.struck}

    @property
    def tolerates_lost(self) -> int:
        """How many witnesses may be unreachable before nodes lose their attestation; below 0 they have lost it."""
        return len(self.counting) - self.needed

    @property
    def tolerates_lying(self) -> int:
        """How many witnesses may lie before one ledger can have two cosigned histories."""
        return max(0, 2 * self.needed - len(self.counting) - 1)

    def name_of(self, key: Verifier) -> str | None:
        """Return the witness that holds `key`; None when the roster does not know it."""
        return next((name for name, one in self.witnesses.items() if one.key == key), None)


def witness_key_name(trust_domain: str, name: str) -> str:
    """Return the name under which a node of the mesh cosigns: `TRUST_DOMAIN/witness/NAME`."""
    return f"{trust_domain}/{WITNESS_KIND}/{check_name(name)}"


def check_key_names(settings: AttestationSettings, trust_domain: str) -> None:
    """Refuse a witness whose key does not carry the witness's own name, or a third party that carries one of ours.

    Raises:
        ValueError: naming the witness.
    """
    for name, one in settings.witnesses.items():
        expected = witness_key_name(trust_domain, name)
        if Verifier.parse(one.key).name != expected:
            raise ValueError(f"the key of witness {name} must be named {expected}")
    for name, other in settings.log_witnesses.items():
        if Verifier.parse(other.key).name.startswith(f"{trust_domain}/"):
            raise ValueError(
                f"log witness {name} is a third party: its key is not named after {trust_domain}"
            )


def policy_text(roster: Roster, logs: Iterable[Verifier] = ()) -> str:
    """Return the roster as a C2SP tlog-policy, by which others verify cosigned checkpoints of `logs`."""
    lines = [f"log {log.encode()}" for log in logs]
    for witness in (*roster.counting.values(), *roster.log_counting.values()):
        url = f" {witness.address}" if witness.name in roster.log_witnesses else ""
        lines.append(f"witness {witness.name} {witness.key.encode()}{url}")
    # names of groups have an underscore, which no witness's name has
    lines.append(f"group mesh_nodes {roster.needed} {' '.join(roster.counting)}")
    quorum = "mesh_nodes"
    if roster.log_needed:
        lines.append(f"group third_parties {roster.log_needed} {' '.join(roster.log_counting)}")
        lines.append("group both_groups all mesh_nodes third_parties")
        quorum = "both_groups"
    lines.append(f"quorum {quorum}")
    return "".join(f"{line}\n" for line in lines)
