"""The online keys of a control plane: the ones that the root in force names, out of those configured."""

from collections.abc import Mapping, Sequence
from typing import Final

from securesystemslib.signer import Signer

from control_plane.config import OnlineKeys
from trust.edge.keyfiles import load_signer, read_passphrase
from trust.errors import InputError, Reason, StateError
from trust.quorum import keys_of
from trust.repository import OnlineSigners, RepositoryState

_ROLES: Final = ("snapshot", "timestamp")


class OnlineKeyring:
    """Every configured online key, opened once."""

    def __init__(self, signers: Mapping[str, Sequence[Signer]]) -> None:
        self._signers = signers

    @classmethod
    def open(cls, keys: OnlineKeys) -> "OnlineKeyring":
        """Open the configured keys.

        Raises:
            InputError: KEY_UNREADABLE, naming the key and what to do.
        """

        def passphrase() -> bytes:
            if keys.passphrase_file is None:
                raise InputError(
                    Reason.KEY_UNREADABLE,
                    "an online key is encrypted; name a file with its passphrase: online_keys.passphrase_file",
                )
            return read_passphrase(keys.passphrase_file)

        return cls({role: [load_signer(ref, passphrase) for ref in getattr(keys, role)] for role in _ROLES})

    def for_root(self, state: RepositoryState) -> OnlineSigners:
        """Return the signers that the root in force names.

        Raises:
            StateError: NOT_AUTHORIZED, when root names none of the configured keys of a role.
        """
        root = state.root_metadata().signed
        chosen = []
        for role in _ROLES:
            allowed = keys_of(root, role)
            found = next((s for s in self._signers[role] if s.public_key.keyid in allowed), None)
            if found is None:
                raise StateError(
                    Reason.NOT_AUTHORIZED,
                    f"root version {root.version} names another {role} key than the configured ones; "
                    f"configure the key it names (online_keys.{role}), or rotate: egm keys rotate --role {role}",
                )
            chosen.append(found)
        return OnlineSigners(snapshot=chosen[0], timestamp=chosen[1])
