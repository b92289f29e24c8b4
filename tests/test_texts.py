import pytest

from refine.errors import shown
from refine.texts import in_markdown, plain


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\x1b]0;title\x07", "a\rb", "a\nb", "a\x9bb", "a\u202eb", "a\u2028b"])
def test_a_name_moves_no_cursor(text):
    assert plain(text).isprintable()
    assert plain(text) != text


@pytest.mark.parametrize("text", ["a b|c", "naïve 猫 🐈", "e\u0301", "a\\b", "\u3000"])
def test_other_names_stay_as_they_are(text):
    assert plain(text) == text


@pytest.mark.parametrize("text", ["<img src=x>", "![a](http://b)", "[a](b)", "`a`", "**a**", "a & b", "a\\"])
def test_a_name_means_nothing_in_markdown(text):
    escaped = in_markdown(text)
    for mark in "<>`*[]":
        before, *_ = escaped.partition(mark)
        assert mark not in escaped or before.endswith("\\")
    assert in_markdown("plain name_1.png") == "plain name_1.png"


@pytest.mark.parametrize("value", [pytest.param(10**10_000, id="digits"), "x" * 10_000, ["y" * 1000]])
def test_a_value_of_any_length_is_shown_short(value):
    assert len(shown(value)) < 100
