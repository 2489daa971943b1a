"""Checkpoints and cosignatures: whose they are, when, and over what."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust import limits
from trust.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint, sign_checkpoint
from trust.errors import EvidenceError
from trust.merkle import EMPTY_ROOT
from trust.note import KeyKind, Verifier, cosign, open_note, sign_note, with_signatures

LOG_KEY, WITNESS_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
LOG = Verifier("example.org/log", LOG_KEY.public_key().public_bytes_raw())
WITNESS = Verifier("w.example.org", WITNESS_KEY.public_key().public_bytes_raw(), KeyKind.COSIGNATURE_V1)
HEAD = Checkpoint(LOG.name, 5, b"\x05" * 32)
SIGNED = sign_checkpoint(HEAD, LOG_KEY.sign, public_key=LOG.public_key)


def cosigned(time_s: int = 1_795_392_000, text: bytes = HEAD.body()) -> bytes:
    """A line of the witness."""
    return cosign(text, WITNESS.name, WITNESS_KEY.sign, public_key=WITNESS.public_key, time_s=time_s)


def test_a_cosigned_checkpoint_tells_who_and_when() -> None:
    """The log's signature and the witness's, with its time."""
    found = open_checkpoint(with_signatures(SIGNED, [cosigned()]), LOG, [WITNESS])
    assert found.checkpoint == HEAD
    assert [(s.name, s.time_s) for s in found.note.verified] == [
        (LOG.name, None),
        (WITNESS.name, 1_795_392_000),
    ]


def test_a_witness_alone_does_not_speak_for_the_log() -> None:
    """A cosignature says what somebody saw; only the log's own key says what the log is."""
    text, _, _ = SIGNED.partition(b"\n\n")
    alone = text + b"\n\n" + cosigned()
    with pytest.raises(EvidenceError, match="not signed by the log"):
        open_checkpoint(alone, LOG, [WITNESS])


def test_a_cosignature_with_another_time_or_text_is_refused() -> None:
    """The time is signed, and so is every line."""
    other_time = cosign(
        HEAD.body(),
        WITNESS.name,
        lambda message: WITNESS_KEY.sign(message.replace(b"time 8", b"time 9")),
        public_key=WITNESS.public_key,
        time_s=8,
    )
    other_text = cosigned(text=Checkpoint(LOG.name, 6, b"\x05" * 32).body())
    for bad in (other_time, other_text):
        with pytest.raises(EvidenceError, match="SIGNATURE_INVALID"):
            open_checkpoint(with_signatures(SIGNED, [bad]), LOG, [WITNESS])
    for time_s in (-1, 2**63):
        with pytest.raises(EvidenceError, match="PROOF_INVALID"):
            cosigned(time_s)


def test_a_plain_signature_is_not_a_cosignature_of_the_same_key() -> None:
    """Key ids keep the two kinds apart: one cannot be passed off as the other."""
    plain = Verifier(WITNESS.name, WITNESS.public_key)
    assert plain.key_id != WITNESS.key_id
    with pytest.raises(EvidenceError, match="SIGNATURE_INVALID"):
        open_note(with_signatures(SIGNED, [cosigned()]), [plain])


def test_a_key_that_signs_two_logs_cannot_pass_one_off_as_the_other() -> None:
    """The origin in the text must be the name that the reader asked for."""
    foreign = sign_note(
        Checkpoint("example.org/other", 5, b"\x05" * 32).body(),
        LOG.name,
        LOG_KEY.sign,
        public_key=LOG.public_key,
    )
    with pytest.raises(EvidenceError, match=r"a checkpoint of 'example\.org/other'"):
        open_checkpoint(foreign, LOG)


def test_a_signer_with_another_key_is_noticed_when_signing() -> None:
    """A misconfigured key would publish checkpoints that nobody can verify."""
    with pytest.raises(EvidenceError, match="SIGNATURE_INVALID"):
        sign_checkpoint(HEAD, WITNESS_KEY.sign, public_key=LOG.public_key)


def test_a_key_that_anybody_could_own_is_refused() -> None:
    """Small order, wrong length, or a name that breaks the line."""
    for name, key in (("a", b"\x00" * 32), ("a", b"\x01" + b"\x00" * 31), ("a", b"\x07" * 31), ("a b", LOG.public_key),
                      ("a+b", LOG.public_key), ("", LOG.public_key), ("a\u2003b", LOG.public_key),
                      ("a" * (limits.MAX_NOTE_NAME_CHARS + 1), LOG.public_key)):  # fmt: skip
        with pytest.raises(EvidenceError, match="KEY_UNSAFE"):
            Verifier(name, key)


@pytest.mark.parametrize(
    "body",
    [
        b"o\n05\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        b"o\n+5\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        b"o\n5\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQV=\n",
        b"o\n5\nBQUF\n",
        b"o\n5\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=",
        b"\n5\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        b"o\n5\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n\n",
        b"o\n0\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        b"o\n9999999999999999999\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        "o\n\u0665\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n".encode(),
    ],
)
def test_only_the_canonical_spelling_is_read(body: bytes) -> None:
    """Two spellings of one checkpoint would be two things to sign."""
    with pytest.raises(EvidenceError, match="PROOF_INVALID"):
        parse_checkpoint(body)


def test_an_empty_log_and_extension_lines_round_trip() -> None:
    """Both are allowed by C2SP tlog-checkpoint."""
    for head in (Checkpoint("o", 0, EMPTY_ROOT), Checkpoint("o", 7, b"\x01" * 32, ("more", "lines"))):
        assert parse_checkpoint(head.body()) == head
