"""One spelling of base64url, and JSON objects without a second reading."""

import pytest

from trust.compact import from_base64url, parse_object, to_base64url, write_object


@pytest.mark.parametrize(
    ("text", "data"), [("", b""), ("Zg", b"f"), ("Zm8", b"fo"), ("Zm9v", b"foo"), ("-_8", b"\xfb\xff")]
)
def test_base64url_of_the_rfcs(text: str, data: bytes) -> None:
    """RFC 4648, section 10, without padding, and the two characters that differ from base64."""
    assert from_base64url(text) == data
    assert to_base64url(data) == text


@pytest.mark.parametrize(
    "text",
    ["Z", "Zm9vZ", "Zg==", "Zg=", "Zh", "Zm9", "+/8", "Zm 9v", "Zm9v\n", "Zé", "\ud800a", "Zm.v", "Zm9v\0A"],
)
def test_other_spellings_of_base64url_are_refused(text: str) -> None:
    """Padding, spare bits, the other alphabet, whitespace, other characters, impossible lengths."""
    with pytest.raises(ValueError, match="base64url"):
        from_base64url(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a":1}x',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'\xef\xbb\xbf{"a":1}',
        '{"a":"é"}'.encode(),
    ],
)
def test_json_that_is_not_one_plain_object_is_refused(data: bytes) -> None:
    """What two readers could read differently, or one not at all."""
    with pytest.raises(ValueError):
        parse_object(data)


def test_an_object_is_written_as_it_is_read() -> None:
    """Members keep their order, text is ASCII, there are no spaces."""
    data = b'{"b":[1,{"x":null}],"a":"\\u00e9 \\ud800"}'
    assert write_object(parse_object(data)) == data
