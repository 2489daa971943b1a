"""Which texts are network addresses: HOST:PORT and [V6]:PORT."""

import re

_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/\s]+):([0-9]{1,5})\Z")


def split_address(text: str) -> tuple[str, int]:
    """Return (host, port) of "host:port" or "[v6]:port"; to listen, port 0 asks the system for a free one.

    Raises:
        ValueError: not of that form.
    """
    match = _HOST_PORT.match(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, for example 127.0.0.1:7400")
    return match[1].strip("[]"), int(match[2])
