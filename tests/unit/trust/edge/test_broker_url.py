"""What a broker URL may say."""

from pathlib import Path

import pytest

from trust.edge.mqtt import BrokerUrl
from trust.errors import InputError, Reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", BrokerUrl("")),
        ("mqtt://broker", BrokerUrl("broker", 1883)),
        ("mqtt://broker:1884/", BrokerUrl("broker", 1884)),
        ("mqtt://[::1]:1884", BrokerUrl("::1", 1884)),
        ("mqtts://broker", BrokerUrl("broker", 8883, tls=True)),
        ("mqtt://user:p%40ss%3A%2F@broker", BrokerUrl("broker", 1883, "user", "p@ss:/")),
    ],
)
def test_urls_that_are_understood(text: str, expected: BrokerUrl) -> None:
    """Defaults, ports, IPv6, percent-encoded credentials."""
    assert BrokerUrl.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "mqtt:// or mqtts://"),
        ("broker:1883", "mqtt:// or mqtts://"),
        ("http://broker", "mqtt:// or mqtts://"),
        ("mqtt://", "name a host"),
        ("mqtt://broker:0", "port 0"),
        ("mqtt://broker:99999", "ort"),
        ("mqtt://broker:abc", "ort"),
        ("mqtt://[::1", "IPv6"),
        ("mqtt://broker/topic", "nothing may follow"),
        ("mqtt://broker#x", "nothing may follow"),
        ("mqtt://:secret@broker", "needs a user"),
        ("mqtts://broker?insecure=1", "'insecure' is unknown"),
        ("mqtts://broker?ca=", "repeated or empty"),
        ("mqtts://broker?ca", "must be ca=FILE"),
        ("mqtts://broker?ca=/nowhere/ca.pem", "not a file"),
    ],
)
def test_urls_that_are_refused_say_what_is_wrong(text: str, hint: str) -> None:
    """The message names the mistake and shows how to write it, without the password."""
    with pytest.raises(InputError) as caught:
        BrokerUrl.parse(text)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert hint in caught.value.detail
    assert "mqtts://host" in caught.value.detail
    assert "secret" not in caught.value.detail


def test_a_password_is_never_shown() -> None:
    """Not in logs, not in status output, not in a traceback."""
    url = BrokerUrl.parse("mqtt://user:secret@broker")
    assert "secret" not in str(url) + repr(url)
    assert str(url) == "mqtt://user@broker:1883"
    assert str(BrokerUrl.parse("mqtt://[::1]")) == "mqtt://[::1]:1883"
    assert str(BrokerUrl.parse("none")) == "none"


def test_certificate_files_need_tls_and_come_in_pairs(tmp_path: Path) -> None:
    """Half a client certificate, or one that would never be used, is a mistake."""
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    with pytest.raises(InputError, match="mqtts://"):
        BrokerUrl.parse(f"mqtt://broker?ca={tmp_path}/ca")
    with pytest.raises(InputError, match="belong together"):
        BrokerUrl.parse(f"mqtts://broker?cert={tmp_path}/cert")
    url = BrokerUrl.parse(f"mqtts://broker?ca={tmp_path}/ca&cert={tmp_path}/cert&key={tmp_path}/key")
    assert (url.ca, url.cert, url.key) == (tmp_path / "ca", tmp_path / "cert", tmp_path / "key")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """With the command that mends it."""
    (tmp_path / "cert").write_text("x")
    (tmp_path / "key").write_text("x")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        BrokerUrl.parse(f"mqtts://broker?cert={tmp_path}/cert&key={tmp_path}/key")
