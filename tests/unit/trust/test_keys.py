"""Public keys that may and may not vouch."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import Key, SSlibKey

from tests.support.tuf_world import signer, twin
from trust.errors import EvidenceError, Reason
from trust.keys import _SMALL_ORDER_Y, check_distinct, check_public_key, key_material, key_name

P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P


def ed25519_key(raw: bytes) -> Key:
    return SSlibKey("00" * 32, "ed25519", "ed25519", {"public": raw.hex()})


def refused(key: Key) -> str:
    with pytest.raises(EvidenceError) as caught:
        check_public_key(key)
    assert caught.value.reason is Reason.KEY_UNSAFE
    return caught.value.detail


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Add two points of edwards25519 (RFC 8032 section 5.1.4, affine)."""
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + k, P - 2, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - k, P - 2, P) % P
    return x, y


def x_of(y: int) -> int:
    """Return a root of (y^2 - 1) / (d y^2 + 1)."""
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return x


def test_listed_small_order_points_really_have_order_dividing_eight() -> None:
    """The table is checked by arithmetic, not by trust in its source."""
    for y in _SMALL_ORDER_Y:
        point = (x_of(y), y)
        for _ in range(3):
            point = add(point, point)
        assert point == (0, 1)


def test_there_are_exactly_eight_points_of_small_order() -> None:
    """Nothing is missing from the table: the torsion group of the curve has eight elements."""
    points = {p for y in _SMALL_ORDER_Y for p in ((x_of(y), y), (-x_of(y) % P, y))}
    assert len(points) == 8


@pytest.mark.parametrize("y", sorted(_SMALL_ORDER_Y))
@pytest.mark.parametrize("sign", [0, 1])
def test_small_order_point_is_refused_with_either_sign_bit(y: int, sign: int) -> None:
    """A key that verifies anybody's signature proves nothing about its holder."""
    assert "small order" in refused(ed25519_key((y | sign << 255).to_bytes(32, "little")))


def test_noncanonical_and_off_curve_points_are_refused() -> None:
    """Two encodings of one point would be two keys; a point off the curve is none."""
    assert "canonical" in refused(ed25519_key((P + 1).to_bytes(32, "little")))
    assert "curve" in refused(ed25519_key((2).to_bytes(32, "little")))
    assert "32" in refused(ed25519_key(b"\x01" * 31))
    assert "hex" in refused(SSlibKey("0", "ed25519", "ed25519", {"public": "zz"}))


def test_allowed_kinds_are_accepted() -> None:
    """Ed25519, ECDSA on P-256 and P-384, and RSA-PSS with 3072 bits may sign."""
    check_public_key(signer("a").public_key)
    check_public_key(SSlibKey.from_crypto(ec.generate_private_key(ec.SECP256R1()).public_key()))
    check_public_key(SSlibKey.from_crypto(ec.generate_private_key(ec.SECP384R1()).public_key()))
    check_public_key(SSlibKey.from_crypto(rsa.generate_private_key(65537, 3072).public_key()))


def test_short_rsa_other_schemes_and_mismatched_curves_are_refused() -> None:
    """Weak or unusual keys are refused by name, so that the message helps."""
    short = rsa.generate_private_key(65537, 2048).public_key()
    assert "2048" in refused(SSlibKey.from_crypto(short))
    assert "scheme" in refused(SSlibKey.from_crypto(short, scheme="rsa-pkcs1v15-sha256"))
    p521 = ec.generate_private_key(ec.SECP521R1()).public_key()
    assert "scheme" in refused(SSlibKey.from_crypto(p521))
    p384 = SSlibKey.from_crypto(ec.generate_private_key(ec.SECP384R1()).public_key())
    assert "curve" in refused(SSlibKey("0", "ecdsa", "ecdsa-sha2-nistp256", p384.keyval))
    assert "RSA" in refused(SSlibKey("0", "rsa", "rsassa-pss-sha256", p384.keyval))
    legacy = SSlibKey("0", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384", p384.keyval)
    assert "scheme" in refused(legacy)
    assert "PEM" in refused(SSlibKey("0", "ecdsa", "ecdsa-sha2-nistp256", {"public": "no"}))


def test_one_key_under_two_ids_or_encodings_has_one_material() -> None:
    """Key ids and PEM line breaks are labels; the material is the identity."""
    one = signer("a")
    assert key_material(one.public_key) == key_material(twin(one).public_key)
    point = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = point.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    a = SSlibKey("1", "ecdsa", "ecdsa-sha2-nistp256", {"public": pem})
    b = SSlibKey("2", "ecdsa", "ecdsa-sha2-nistp256", {"public": "comment\n" + pem + "\n\n"})
    assert key_material(a) == key_material(b)
    with pytest.raises(EvidenceError, match="the same key"):
        check_distinct([a, signer("c").public_key, b])
    upper = SSlibKey("3", "ed25519", "ed25519", {"public": one.public_key.keyval["public"].upper()})
    assert key_material(upper) == key_material(one.public_key)


def test_display_name_falls_back_to_the_key_id_when_it_could_mislead() -> None:
    """A signed name is shown only if it is short and printable."""
    key = signer("approver-1").public_key
    assert key_name(key) == "approver-1"
    for bad in ("", "a\nb", "x" * 65, 7):
        key.unrecognized_fields["x-egm-name"] = bad
        assert key_name(key) == key.keyid[:12]


def test_one_rsa_modulus_under_two_exponents_is_one_key() -> None:
    """Whoever knows the factors signs under every exponent, so a second exponent is no second holder."""
    modulus = rsa.generate_private_key(65537, 3072).public_key().public_numbers().n
    keys = [
        SSlibKey(
            f"{exponent:064}",
            "rsa",
            "rsassa-pss-sha256",
            {"public": _pem(rsa.RSAPublicNumbers(exponent, modulus).public_key())},
        )
        for exponent in (3, 65537)
    ]
    with pytest.raises(EvidenceError):
        check_distinct(keys)


def _pem(key: rsa.RSAPublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
