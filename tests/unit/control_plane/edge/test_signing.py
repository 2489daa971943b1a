"""The online keys of a control plane, opened."""

from pathlib import Path

import pytest

from control_plane.config import OnlineKeys
from control_plane.edge.signing import OnlineKeyring
from trust.edge.keyfiles import create_key, read_passphrase
from trust.errors import InputError, Reason


def test_a_passphrase_is_read_as_the_key_was_made_with_it(tmp_path: Path) -> None:
    """Blanks around a passphrase belong to it: `egm keys` keeps them, so must the control plane."""
    secret = tmp_path / "passphrase"
    secret.write_bytes(b"  two words \n")
    secret.chmod(0o600)
    create_key(tmp_path / "online.pem", "online", read_passphrase(secret))
    ref = str(tmp_path / "online.pem")
    OnlineKeyring.open(OnlineKeys(snapshot=(ref,), timestamp=(ref,), passphrase_file=secret))


def test_a_passphrase_file_that_is_away_is_named(tmp_path: Path) -> None:
    """Who moved it must read which file, not a fault of the program."""
    create_key(tmp_path / "online.pem", "online", b"correct horse")
    ref, away = str(tmp_path / "online.pem"), tmp_path / "away"
    with pytest.raises(InputError, match="away") as refused:
        OnlineKeyring.open(OnlineKeys(snapshot=(ref,), timestamp=(ref,), passphrase_file=away))
    assert refused.value.reason is Reason.KEY_UNREADABLE
