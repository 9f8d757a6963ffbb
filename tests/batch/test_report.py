"""Tests of a results file as rows, CSV, Markdown and HTML: hostile text stays text."""

import csv
import io
import json
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxcli.batch import report
from voxcli.batch.stats import Stats
from voxcli.errors import ConfigError

HOSTILE = ['=HYPERLINK("http://x","y")', "<script>alert(1)</script>", "a|b\n| c |", "\x1b[2J", "[x](http://x)", "- 1"]


def answered(id_: str, reply: str, **parts: Any) -> dict[str, Any]:
    return {"id": id_, "user": "[User audio input - 16000 samples, 1.00s]", "reply": reply, **parts}


def failed(id_: str, message: str) -> dict[str, Any]:
    return {"id": id_, "error": {"code": "audio_input", "message": message}}


def lines(*records: dict[str, Any]) -> list[bytes]:
    return [json.dumps(record).encode() + b"\n" for record in records]


def test_a_row_has_the_figures_of_its_record() -> None:
    record = answered("q", "Paris.", audio={"seconds": 2.5}, tokens={"reply": 3}, timings={"first_token_seconds": 0.4})
    assert report.row(record) == ("q", 2.5, 0.4, None, 3, "Paris.", "")
    assert report.row(failed("q", "it is empty")) == ("q", None, None, None, None, "", "audio_input: it is empty")


def test_a_torn_line_at_the_end_is_left_out() -> None:
    written = [*lines(answered("a", "A"), failed("b", "no")), b'{"id": "c", "rep']
    assert [record["id"] for record in report.records(written, "r.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b'{"id": 1}\n', b"\xff\n", b'{"id": "a", "reply": null, "user": ""}\n']
)
def test_another_file_is_refused_with_the_line(line: bytes) -> None:
    with pytest.raises(ConfigError, match=r"r\.jsonl, line 2: not a record"):
        list(report.records([*lines(answered("a", "A")), line], "r.jsonl"))


@given(st.lists(st.text() | st.sampled_from(HOSTILE), min_size=1, max_size=4))
def test_csv_holds_each_reply_in_one_cell_that_is_no_formula(replies: list[str]) -> None:
    rows = [report.row(answered(f"item {index}", reply)) for index, reply in enumerate(replies)]
    text = "".join(report.as_csv(rows))
    header, *read = csv.reader(io.StringIO(text, newline=""))
    assert header == list(report.ItemRow._fields)
    assert [cells[0] for cells in read] == [row.id for row in rows]
    assert all(len(cells) == len(header) for cells in read)
    assert not any(cell.startswith(tuple(report.FORMULA)) for cells in read for cell in cells)
    assert "\x1b" not in text


@given(st.text() | st.sampled_from(HOSTILE))
def test_markdown_has_one_line_per_item_without_markup(reply: str) -> None:
    stats = Stats()
    _header, _rule, line, *_ = "".join(report.as_markdown([report.row(answered("a", reply))], stats)).split("\n")
    unescaped = line.replace("\\\\", "").replace("\\|", "").replace("\\<", "").replace("\\[", "")
    assert unescaped.count("|") == len(report.ItemRow._fields) + 1
    assert not {"<", "[", "\x1b"} & set(unescaped)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text() | st.sampled_from(HOSTILE))
def test_html_has_no_tag_from_a_reply(reply: str) -> None:
    page = Tags()
    page.feed("".join(report.as_html([report.row(answered("a", reply))], Stats())))
    assert page.tags == {"html", "meta", "title", "style", "h1", "table", "tr", "th", "td", "p"}
    assert "\x1b" not in page.text


def test_the_summary_counts_what_was_read() -> None:
    stats = Stats()
    for record in (answered("a", "A", timings={"first_token_seconds": 0.5}), failed("b", "no")):
        stats.add(record)
    assert report.summary(stats).startswith("1 answered · 1 failed · ")
    assert report.summary(stats).endswith("first token median 0.50 s, p95 0.50 s")
