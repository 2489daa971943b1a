"""What an approver is shown of a request: the very bytes that the approval binds, read by the signed descriptors.

What was not shown is said: fields that no descriptor knows, bytes without a descriptor, a request that was not kept.
"""

import enum
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from trust.bundle import Bundle
from trust.errors import EvidenceError
from trust.policy.descriptors import MethodTable
from trust.ticket import ANY_REQUEST, METHOD_ALONE, NOTHING_SENT, Ticket

_ROW: Final = 16  # bytes in a line


@enum.unique
class Shown(enum.StrEnum):
    """How much an approver sees of the request."""

    WHOLE = "shown"  # every field, by the descriptors of the policy in force
    PARTLY = "partly shown"  # it has fields that the descriptors do not know
    TEXT = "shown as text"  # no descriptor, but readable
    BYTES = "shown as bytes"  # no descriptor, and not readable
    MISSING = "not shown"  # too large, or no longer kept
    UNBOUND = "any request"  # the approval binds none
    NOTHING = "empty stream"  # the caller sent no message
    CONTRADICTED = "not the request"  # the bytes have another digest: somebody lies


@dataclass(frozen=True, slots=True)
class Content:
    """What is shown, and how much of the request that is."""

    shown: Shown
    text: str = ""

    @property
    def complete(self) -> bool:
        """Whether whoever signs has seen all that is bound, as far as can be shown."""
        return self.shown in {Shown.WHOLE, Shown.TEXT, Shown.NOTHING}


def content_of(ticket: Ticket, content: bytes | None, bundles: Iterable[Bundle]) -> Content:
    """Return what to show of the request of a ticket.

    Args:
        ticket: what would be signed.
        content: the bytes that the control plane shows; None when it shows none.
        bundles: the policy in force, for its descriptors.
    """
    if ticket.request == NOTHING_SENT:
        return Content(Shown.NOTHING)
    bound = ticket.request not in {ANY_REQUEST, METHOD_ALONE}
    if content is None:
        return Content(Shown.MISSING if bound else Shown.UNBOUND)
    if bound and hashlib.sha256(content).hexdigest() != ticket.request:
        return Content(Shown.CONTRADICTED)
    read = _read(ticket.method, content, bundles)
    if not bound:  # the first request of a window: an example, nothing more
        return Content(Shown.UNBOUND, read.text)
    return read


def _read(method: str, content: bytes, bundles: Iterable[Bundle]) -> Content:
    for bundle in bundles:
        try:
            message = MethodTable.parse(bundle.descriptors).decode(method, content)
        except EvidenceError:
            continue
        fields = MessageToDict(message, preserving_proto_field_name=True)
        text = json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True)
        return Content(Shown.PARTLY if _has_unknown(message) else Shown.WHOLE, text)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return Content(Shown.BYTES, _dump(content))
    if all(c.isprintable() or c in "\n\t" for c in text):
        return Content(Shown.TEXT, text)
    return Content(Shown.BYTES, _dump(content))


def _dump(content: bytes) -> str:
    return "\n".join(content[at : at + _ROW].hex(" ") for at in range(0, len(content), _ROW))


def _has_unknown(message: Message) -> bool:
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != message.ByteSize()
