import pytest
from hypothesis import given

from tests.core.test_sentences import TEXTS
from voxcli.core.speakable import speakable


@pytest.mark.parametrize(
    ("piece", "spoken"),
    [
        ("**Bold**, *it*, __b__, _i_, ~~no~~ and ***all***.", "Bold, it, b, i, no and all."),
        ("**Half of", "Half of"),
        ("## Heading", "Heading"),
        ("- item\n", "item"),
        ("  * [x] done", "done"),
        ("> quoted", "quoted"),
        ("1. Wash", "1. Wash"),
        ("- one\n- two!\n- three", "one. two! three"),
        ("2 * 3, 2*3 and snake_case", "2 * 3, 2*3 and snake case"),
        ("| a | b |", "a, b"),
        ("|---|:-:|", ""),
        ("---", ""),
        ("[the docs](https://x.example/y) and ![a cat](c.png)[^1]", "the docs and a cat"),
        ("See <https://www.example.com:80/a/b?c=d>.", "See example dot com."),
        ("It (http://user:pw@a.example/b), too.", "It (a dot example), too."),
        ("At https://a.example/x.y. Then", "At a dot example. Then"),
        ("run `ls -l` now", "run ls -l now"),
        ("```py\nimport os\n```", "Code block."),
        ("Here: ```\nnever closed", "Here: Code block."),
        ("Hi 😀👍🏽🇫🇷 there 1️⃣ 20°C 👨‍👩‍👧", "Hi there 1 20°C"),
        ("\u202eevil\u200b\x1b[31m\x00", "evil 31m"),
        ("Wow!!! What?!?! So.... Yes", "Wow! What? So... Yes"),
        ("a < b and c > d -> e", "a less than b and c greater than d, e"),
        ("R&amp;D costs $5.00 &lt;now&gt;", "R&D costs $5.00"),
        ("Café naïve — 東京、はい。", "Café naïve — 東京、はい。"),
        ("***", ""),
        ("?!", ""),
        ("", ""),
    ],
)
def test_speakable(piece: str, spoken: str) -> None:
    assert speakable(piece) == spoken


@pytest.mark.parametrize(
    "hostile",
    [
        "<speak><break time='99s'/>hi</speak>",
        "&lt;speak&gt;hi",
        "<audio src='file:///etc/passwd'/>hi",
        "[[rate 900]]hi",
        "[ [ rate 900]]hi [[inpt PHON]]",
        "[\u200b[_^_EN]]hi",
        "<<b>audio src='x'>hi",
    ],
)
def test_nothing_that_a_voice_takes_for_a_command_is_left(hostile: str) -> None:
    spoken = speakable(hostile)
    assert not set("<>[]{}") & set(spoken)
    assert "hi" in spoken


@given(TEXTS)
def test_what_is_spoken_is_one_harmless_line(text: str) -> None:
    spoken = speakable(text)
    assert spoken == " ".join(spoken.split())
    assert all(char.isprintable() or char == "\u200c" for char in spoken)
    assert not set("<>[]{}\\`") & set(spoken)
    assert not spoken or any(char.isalnum() for char in spoken)
