"""Asks a third party to cosign this node's checkpoint: C2SP tlog-witness, `POST PREFIX/add-checkpoint`."""

import base64
import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from trust import limits
from trust.attestation.roster import Witness
from trust.checkpoint import parse_checkpoint
from trust.errors import EvidenceError, Reason, StateError
from trust.note import open_note, read_unverified

_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n?\Z")
_MAX_ANSWER_BYTES: Final = limits.MAX_NOTE_BYTES
_CONFLICT: Final = 409
_OK: Final = 200

Prove = Callable[[int], Sequence[bytes]]  # consistency proof from a size to the checkpoint's


class TlogWitness:
    """One third party. Blocking, WITNESS_TIMEOUT_S at most for each request: call it in a thread."""

    def __init__(self, witness: Witness) -> None:
        """Know nothing of what it has seen."""
        self.witness = witness
        self._size = 0  # of the last checkpoint that it cosigned, as far as we know

    def add_checkpoint(self, note: bytes, prove: Prove) -> bytes:
        """Return its cosignature line over the checkpoint.

        Args:
            note: the checkpoint, signed by its log alone.
            prove: makes consistency proofs up to it.

        Raises:
            StateError: SOURCE_UNAVAILABLE, if it does not answer or refuses; says how.
            EvidenceError: SIGNATURE_INVALID and others, if its answer is no cosignature of its own.
        """
        size = parse_checkpoint(read_unverified(note).text).size
        old = min(self._size, size)
        status, body = self._post(old, prove(old), note)
        if status == _CONFLICT and (told := _SIZE.match(body)) is not None and int(told[1]) <= size:
            old = int(told[1])  # what it has seen of us before this process started
            status, body = self._post(old, prove(old), note)
        if status != _OK:
            raise StateError(
                Reason.SOURCE_UNAVAILABLE,
                f"witness {self.witness.name} answered {status} to a checkpoint of size {size}: "
                f"{body[:100].decode('ascii', 'replace').strip()!r}",
            )
        line = self._own_line(note, body)
        self._size = size
        return line

    def _own_line(self, note: bytes, body: bytes) -> bytes:
        key = self.witness.key
        verified = open_note(note + body, [key]).verified
        prefix = f"— {key.name} ".encode()
        for line in body.splitlines(keepends=True):
            value = line.removeprefix(prefix)
            if value != line and base64.b64decode(value)[4:] == verified[0].value:
                return line
        raise EvidenceError(
            Reason.SIGNATURE_INVALID, f"witness {self.witness.name} answered without its line"
        )

    def _post(self, old: int, proof: Sequence[bytes], note: bytes) -> tuple[int, bytes]:
        lines = "".join(f"{base64.b64encode(value).decode()}\n" for value in proof)
        body = f"old {old}\n{lines}\n".encode() + note
        url = urlsplit(self.witness.address)
        host, port = url.hostname or "", url.port
        connection: _Timed
        if url.scheme == "https":
            context = ssl.create_default_context()
            connection = _TimedTls(host, port, timeout=limits.WITNESS_TIMEOUT_S, context=context)
        else:
            connection = _Timed(host, port, timeout=limits.WITNESS_TIMEOUT_S)
        try:
            path = f"{url.path.rstrip('/')}/add-checkpoint"
            connection.request("POST", path, body, {"Content-Type": "text/plain; charset=utf-8"})
            answer = connection.getresponse()
            return answer.status, answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise StateError(
                Reason.SOURCE_UNAVAILABLE, f"witness {self.witness.name} at {self.witness.address}: {error}"
            ) from None
        finally:
            connection.over()
            connection.close()


class _Timed(http.client.HTTPConnection):
    """A connection that is shut WITNESS_TIMEOUT_S after it was opened, whatever the other side sends meanwhile.

    Timeouts of sockets begin anew with every byte: a third party that sends one every few seconds would hold a thread
    for hours, and with some of them every thread that this node has for its disk and its policy.
    """

    _ending: tuple[threading.Timer, socket.socket] | None = None

    def connect(self) -> None:
        """Connect; in front of TLS, so that its handshake is in time as well."""
        super().connect()
        # A socket of its own on the same connection: http.client closes its own when it likes.
        other = socket.socket(fileno=os.dup(self.sock.fileno()))
        timer = threading.Timer(limits.WITNESS_TIMEOUT_S, _shut, (other,))
        timer.daemon = True
        timer.start()
        self._ending = (timer, other)

    def over(self) -> None:
        """Let it be: the answer is here, or will not be waited for."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending[0].cancel()
            ending[1].close()


class _TimedTls(http.client.HTTPSConnection, _Timed):
    """The same over TLS."""


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it ended at the same moment
        connection.shutdown(socket.SHUT_RDWR)
