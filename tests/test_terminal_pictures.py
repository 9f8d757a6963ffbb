"""The picture of a chat: the SVG holds the screen's text in its colours, and loads nothing."""

import re
from xml.etree import ElementTree

import pytest

pyte = pytest.importorskip("pyte")

from scripts.terminal_pictures import DimScreen, svg  # noqa: E402 - it imports pyte


def drawn(output: str, *, columns: int = 40, rows: int = 6) -> ElementTree.Element:
    screen = DimScreen(columns, rows)
    pyte.Stream(screen).feed(output)
    return ElementTree.fromstring(svg(screen, "a title"))  # noqa: S314 - made by the function under test


def texts(picture: ElementTree.Element) -> list[tuple[str, str]]:
    """Return the texts of a picture, each with the rule of its class."""
    rules = dict(re.findall(r"\.([\w-]+) \{ (.*?) ?\}", " ".join(picture.itertext())))
    found = [each for each in picture.iter() if each.tag.endswith("}text")]
    return [((each.text or "").replace("\xa0", " ").strip(), rules.get(each.get("class", ""), "")) for each in found]


def test_text_and_title_are_in_the_picture_and_empty_rows_at_the_end_are_not() -> None:
    shown = [text for text, _ in texts(drawn("hello\r\n\r\nworld")) if text]
    assert shown == ["a title", "hello", "world"]
    assert len(texts(drawn("hello", rows=20))) == len(texts(drawn("hello", rows=2)))


def test_dim_and_bold_text_is_told_apart() -> None:
    rules = dict(texts(drawn("plain\x1b[0m \x1b[2mdim\x1b[0m \x1b[1mbold\x1b[0m")))
    assert "bold" in rules["bold"]
    assert "bold" not in rules["dim"] + rules["plain"]
    assert len({rules["dim"], rules["plain"]}) == 2


def test_a_space_before_another_style_is_left_to_the_position() -> None:
    picture = drawn("\x1b[1mspace\x1b[0m\x1b[2m mute\x1b[0m")
    (mute,) = (each for each in picture.iter() if (each.text or "").strip("\xa0\n ") == "mute")
    assert mute.text == "mute"
    assert float(mute.attrib["x"]) == pytest.approx(6 * float(mute.attrib["textLength"]) / 4)


def test_colours_of_every_kind_are_drawn() -> None:
    rules = dict(texts(drawn("\x1b[33mnamed \x1b[38;5;208mindexed \x1b[38;2;1;2;3mexact")))
    assert "#ff8700" in rules["indexed"]
    assert "#010203" in rules["exact"]
    assert len(set(rules.values())) >= 3


def test_nothing_is_loaded_from_elsewhere() -> None:
    screen = DimScreen(20, 2)
    text = svg(screen, "empty")
    assert "@font-face" not in text
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
