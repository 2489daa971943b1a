"""Where the broker is and how it is reached, from one URL: `mqtt://[user:pass@]host[:1883]`, `mqtts://…` or `none`."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from trust.edge.files import check_private
from trust.errors import InputError, Reason

DEFAULT_PORT: Final = 1883
DEFAULT_TLS_PORT: Final = 8883


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where announcements go: `mqtt://[user:pass@]host[:1883]`, `mqtts://…[?ca=F&cert=F&key=F]` or `none`."""

    host: str  # empty: no broker
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None  # None: the system's certificate authorities
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "BrokerUrl":
        """Parse a broker URL; user and password are percent-decoded, files must exist, the key be private.

        Raises:
            InputError: CONFIG_INVALID or KEY_UNREADABLE, saying what is wrong and how to write it, never
                repeating a password.
        """
        if text == "none":
            return cls("")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _wrong(f"{error}") from None
        if parts.scheme not in {"mqtt", "mqtts"} or not host:
            raise _wrong("it must start with mqtt:// or mqtts:// and name a host")
        if port == 0:
            raise _wrong("port 0 cannot be connected to")
        if parts.path not in {"", "/"} or parts.fragment:
            raise _wrong("nothing may follow the port except ?ca=FILE&cert=FILE&key=FILE")
        if parts.password and not parts.username:
            raise _wrong("a password needs a user before it (user:password@host)")
        tls = parts.scheme == "mqtts"
        files = _files(parts.query, tls=tls)
        return cls(
            host,
            port or (DEFAULT_TLS_PORT if tls else DEFAULT_PORT),
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            tls,
            files.get("ca"),
            files.get("cert"),
            files.get("key"),
        )

    @property
    def enabled(self) -> bool:
        """Whether there is a broker at all."""
        return bool(self.host)

    def __str__(self) -> str:
        """The URL as it may be shown and logged: without the password."""
        if not self.enabled:
            return "none"
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.username}@" if self.username else ""
        return f"{'mqtts' if self.tls else 'mqtt'}://{user}{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Read the certificate files (blocking); return a verifying client context, None for plain TCP.

        Raises:
            OSError: a file cannot be read or is not what it should be (`ssl.SSLError` is an OSError).
        """
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        context.sslsocket_class = _TlsSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when its handshake fails: paho forgets it then, and every refused attempt would leak one."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _files(query: str, *, tls: bool) -> dict[str, Path]:
    files: dict[str, Path] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise _wrong("what follows ? must be ca=FILE&cert=FILE&key=FILE") from None
    for name, value in pairs:
        if name not in {"ca", "cert", "key"} or name in files or not value:
            raise _wrong(
                f"{name!r} is unknown, repeated or empty; only ca, cert and key are known, once each"
            )
        files[name] = Path(value)
        if not files[name].is_file():
            raise _wrong(f"{name}={value} is not a file")
    if files and not tls:
        raise _wrong("certificate files need mqtts://, over mqtt:// nothing is encrypted")
    if ("cert" in files) != ("key" in files):
        raise _wrong("cert and key belong together; give both or neither")
    if "key" in files:
        check_private(files["key"])
    return files


def _wrong(what: str) -> InputError:
    return InputError(
        Reason.CONFIG_INVALID,
        f"broker URL: {what}. Write mqtt://[user:password@]host[:port], mqtts://host[:port][?ca=FILE&cert=FILE&key=FILE]"
        ' or "none"',
    )
