"""What of a reply is reasoning, and what only looks like it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxcli.engines.openai.reasoning import ReasoningFilter

CASES = {
    "Hello.": "Hello.",
    "<think>hm</think>Hello.": "Hello.",
    "<think>\n\n</think>\n\nHello.": "Hello.",
    "\n<think>hm</think>\n\nHello.": "\nHello.",
    "<THINK>hm</Think>Hello.": "Hello.",
    "<thinking>hm</thinking>Hello.": "Hello.",
    "[THINK]hm[/THINK]Hello.": "Hello.",
    "<thought>hm</thought>Hello.": "Hello.",
    "<reasoning>hm</reasoning>Hello.": "Hello.",
    "<seed:think>hm</seed:think>Hello.": "Hello.",
    "◁think▷hm◁/think▷Hello.": "Hello.",
    "<|START_THINKING|>hm<|END_THINKING|>Hello.": "Hello.",
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hello.": "Hello.",
    "<think>write <think> first</think>Hello.": "Hello.",
    "<think>hm</think>Hello. <think>more</think>Bye.": "Hello. Bye.",
    "Hello <think>hm</think> there": "Hello  there",
    "<think>one</think><think>two</think>Hello.": "Hello.",
    "<think>never closed": "",
    "<think>hm": "",
    "Use the <think> tag.": "Use the <think> tag.",
    "Use <think> or [THINK] here": "Use <think> or [THINK] here",
    "Hello.</think> Bye.": "Hello. Bye.",
    "3 < 4, [1] and <thin ice>": "3 < 4, [1] and <thin ice>",
    "It ends with <thi": "It ends with <thi",
    "": "",
}


def filtered(deltas: list[str]) -> str:
    reasoning = ReasoningFilter()
    return "".join([*map(reasoning.feed, deltas), reasoning.finish()])


@pytest.mark.parametrize("reply", CASES)
def test_reasoning_is_left_out_however_the_reply_is_cut_into_deltas(reply: str) -> None:
    assert filtered(list(reply)) == CASES[reply]
    for size in (2, 3, 5, 8):
        assert filtered([reply[start : start + size] for start in range(0, len(reply), size)]) == CASES[reply]


def test_a_closing_tag_alone_ends_what_was_not_returned_yet() -> None:
    assert filtered(["The user asks.</think>\n\nParis."]) == "Paris."
    assert filtered(["The user", " asks.</think> Paris."]) == "The user asks. Paris.", "it was spoken already"


def test_text_is_returned_as_soon_as_it_is_certain() -> None:
    reasoning = ReasoningFilter()
    assert [reasoning.feed(delta) for delta in ("a <", "b", " <thi", "nk> c", "</think", ">d")] == [
        "a ",
        "<b",
        " ",
        "",
        "",
        "d",
    ]


@given(st.text(alphabet="ab <", max_size=60), st.text(alphabet="ab \n", max_size=60), st.data())
def test_a_reply_without_tags_is_unchanged_and_one_with_them_loses_only_these(
    reply: str, thought: str, data: st.DataObject
) -> None:
    whole = f"<think>{thought}</think>{reply}"
    cut = data.draw(st.integers(0, len(whole)))
    assert filtered([reply[:cut], reply[cut:]]) == reply
    assert filtered([whole[:cut], whole[cut:]]) == reply.lstrip()
