"""What a terminal shows is what the bytes say: no text from outside can steer it, hide, or look like something else."""

import pytest

from control_plane.cli import policy_source
from control_plane.cli.output import console, emit, table, visible
from trust.policy.diff import BundleDiff, PolicyChange


def shown(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `egm policy review` prints for an added policy of this text."""
    change = PolicyChange("p", "policies/p.cedar:1", "", text)
    policy_source.show_diff(BundleDiff((change,), (), (), (), (), 0, truncated=False))
    return capsys.readouterr().out


def test_an_escape_sequence_in_a_policy_cannot_erase_what_was_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ESC and carriage return could overwrite a permit with harmless text."""
    out = shown("permit(principal, action, resource); // \x1b[2K\x1b[1A\x9b2K\u202e\u00a0", capsys)
    assert "\x1b" not in out
    assert r"\x1b[2K\x1b[1A\x9b2K\u202e\xa0" in out


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_comment_does_not_seem_to_end_where_cedar_goes_on_with_it(
    separator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A condition behind such a character is part of the comment, so it must not stand on a line of its own."""
    out = shown(f"permit(principal, action, resource) //{separator}when {{ false }}\n;", capsys)
    assert any("//" in line and "when { false }" in line for line in out.splitlines())


def test_a_policy_behind_a_bare_carriage_return_stands_on_its_own_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cedar ends a comment at a carriage return: what follows is in force and must not look commented out."""
    out = shown("// note\rpermit(principal, action, resource);", capsys)
    assert not any("//" in line and "permit" in line for line in out.split("\n"))


def test_markup_and_emoji_codes_in_outside_text_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A title or method in square brackets must neither vanish nor end the command with an error."""
    table(("title",), [("[conceal]x[/conceal] [/] :lock:\x1b[8m\nsecond",)])
    emit({}, as_json=False, text="[link=http://x]y[/link] :lock:\x07")
    console.print("[bold]z", ":lock:")
    out = capsys.readouterr().out
    assert r"[conceal]x[/conceal] [/] :lock:\x1b[8m\nsecond" in out
    assert r"[link=http://x]y[/link] :lock:\x07" in out
    assert "[bold]z :lock:" in out


def test_every_character_survives_or_is_written_out() -> None:
    """Nothing printed can be an active control, a direction mark, a surrogate or an invisible character."""
    for code in range(0x110000):
        text = visible(chr(code))
        assert text in "\n\t" or text.isprintable()
