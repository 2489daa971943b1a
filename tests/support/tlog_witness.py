"""A C2SP tlog-witness over HTTP, written from its specification and not from our client."""

import base64
import hashlib
import http.server
import threading
import time
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.note import KeyKind, Verifier

NAME = "witness.example/w1"


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: list[bytes]) -> bool:
    """Verify a consistency proof by RFC 9162, section 2.1.4.2, word for word."""
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for part in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = _node(part, fr), _node(part, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = _node(sr, part)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == new_root


class ThirdParty:
    """The witness; it trusts every log on first use, by the key id on its note."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        self.key = Verifier(NAME, public, KeyKind.COSIGNATURE_V1)
        self.refusing = False
        self._seen: dict[str, tuple[int, bytes]] = {}
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/w1"

    @property
    def origins(self) -> set[str]:
        """The logs that it has cosigned."""
        return set(self._seen)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body of one add-checkpoint."""
        if self.refusing:
            return 503, b"later"
        head, _, note = body.partition(b"\n\n")
        first, *lines = head.decode().split("\n")
        word, _, number = first.partition(" ")
        if word != "old" or len(lines) > 63:
            return 400, b""
        old, proof = int(number), [base64.b64decode(line) for line in lines]
        text = note.partition(b"\n\n")[0] + b"\n"
        origin, size_text, root_text = text.decode().split("\n")[:3]
        size, root = int(size_text), base64.b64decode(root_text)
        seen, seen_root = self._seen.get(origin, (0, hashlib.sha256(b"").digest()))
        if old > size:
            return 400, b""
        if old != seen:
            return 409, b"%d\n" % seen
        if old == size and root != seen_root and seen:
            return 409, b"%d\n" % seen
        if not consistent(old, seen_root, size, root, proof):
            return 422, b""
        self._seen[origin] = (size, root)
        now = int(time.time())
        message = f"cosignature/v1\ntime {now}\n".encode() + text
        key_id = hashlib.sha256(NAME.encode() + b"\n\x04" + self.key.public_key).digest()[:4]
        value = key_id + now.to_bytes(8, "big") + self._private.sign(message)
        return 200, f"— {NAME} {base64.b64encode(value).decode()}\n".encode()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        party = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/w1/add-checkpoint":
                    status, answer = 404, b""
                else:
                    try:
                        status, answer = party.answer(body)
                    except (ValueError, InvalidSignature):
                        status, answer = 400, b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
