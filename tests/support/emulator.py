"""A terminal emulator: a screen with its scrollback, and what terminals do with both when their window changes.

`pyte` parses the escape sequences. Rows know whether they were wrapped, which pyte's own screen does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pyte
from wcwidth import iter_graphemes, wcswidth, wcwidth

# What happens to rows when the number of columns changes:
# cut     each row is cut off, as xterm does
# cursor  rows are wrapped anew; what no longer fits below the cursor is dropped, as VTE does (GNOME Terminal)
# bottom  rows are wrapped anew, and the screen shows the last of them, as kitty, alacritty and tmux do
# All of them drop rows below the cursor where the window becomes less high.
Resizing = Literal["cut", "cursor", "bottom"]

DECAWM, DECTCEM = 7, 25  # private modes: wrap at the margin, show the cursor


@dataclass
class Row:
    """Cells of a row, "" for the right half of a wide character."""

    cells: list[str] = field(default_factory=list)
    wraps: bool = False  # goes on in the next row

    @property
    def text(self) -> str:
        return "".join(self.cells).rstrip()


class Emulator(pyte.Screen):
    """A terminal.

    Args:
        clusters: draw an emoji of several code points in two cells, as newer terminals do; otherwise one by one.
    """

    def __init__(self, columns: int, lines: int, resizing: Resizing, *, clusters: bool) -> None:
        self.rows: list[Row] = [Row() for _ in range(lines)]
        self.scrollback: list[Row] = []
        super().__init__(columns, lines)
        self._resizing = resizing
        self._clusters = clusters
        self._stream = pyte.Stream(self)
        self.wraps, self.shows_cursor = True, True

    def feed(self, text: str) -> None:
        """Receive output."""
        self._stream.feed(text)

    def logical_lines(self) -> list[str]:
        """Return scrollback and screen, wrapped rows joined, without the empty rows at the end."""
        lines = [""]
        for row in [*self.scrollback, *self.rows]:
            lines[-1] += "".join(row.cells)
            if not row.wraps:
                lines.append("")
        while lines and not lines[-1].strip():
            lines.pop()
        return [line.rstrip() for line in lines]

    # What the parser calls.

    def reset(self) -> None:
        super().reset()
        self.rows = [Row() for _ in range(self.lines)]

    def select_graphic_rendition(self, *_: int, **__: object) -> None:
        """Ignore colours."""

    def set_mode(self, *modes: int, **_: object) -> None:
        self._set_modes(modes, on=True)

    def reset_mode(self, *modes: int, **_: object) -> None:
        self._set_modes(modes, on=False)

    def _set_modes(self, modes: tuple[int, ...], *, on: bool) -> None:
        if DECAWM in modes:
            self.wraps = on
        if DECTCEM in modes:
            self.shows_cursor = on

    def draw(self, data: str) -> None:
        for text in iter_graphemes(data) if self._clusters else data:
            width = min(wcswidth(text) if self._clusters else wcwidth(text), 2)
            if width > 0:
                self._put(text, width)
            elif self.cursor.x:  # a combining character
                self._add_to_last(text)

    def _put(self, text: str, width: int) -> None:
        if self.cursor.x + width > self.columns:
            if self.wraps:
                self.rows[self.cursor.y].wraps = True
                self.carriage_return()
                self.linefeed()
            else:
                self.cursor.x = self.columns - width
        cells = self.rows[self.cursor.y].cells
        cells += [" "] * (self.cursor.x + width - len(cells))
        cells[self.cursor.x : self.cursor.x + width] = [text, ""][:width]
        self.cursor.x += width  # beyond the margin until the next character comes

    def _add_to_last(self, text: str) -> None:
        cells = self.rows[self.cursor.y].cells
        place = next(place for place in reversed(range(self.cursor.x)) if cells[place] or not place)
        cells[place] += text

    def carriage_return(self) -> None:
        self.cursor.x = 0

    def linefeed(self) -> None:
        if self.cursor.y < self.lines - 1:
            self.cursor.y += 1
        else:
            self.scrollback.append(self.rows.pop(0))
            self.rows.append(Row())

    def cursor_up(self, count: int | None = None) -> None:
        self.cursor.y = max(0, self.cursor.y - (count or 1))

    def erase_in_display(self, how: int = 0, *_: object, **__: object) -> None:
        assert how == 0, "only what is below the cursor may be erased"
        if self.cursor.x == self.cursor.y == 0:  # what tmux does
            self.scrollback += [row for row in self.rows if row.text]
        row = self.rows[self.cursor.y]
        row.cells, row.wraps = row.cells[: self.cursor.x], False
        self.rows[self.cursor.y + 1 :] = [Row() for _ in self.rows[self.cursor.y + 1 :]]

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        """Change the window; the cursor stays where it is in the text."""
        before, self.columns, self.lines = self.columns, columns or self.columns, lines or self.lines
        at = len(self.scrollback) + self.cursor.y
        rows = [*self.scrollback, *self.rows]
        while len(rows) > at + 1 and not rows[-1].cells:
            rows.pop()
        if self._resizing == "cut":
            self._cut(rows, at)
            return
        if self.columns != before:
            rows, at = self._wrapped_anew(rows, at)
        if self._resizing == "bottom" and self.columns != before:
            self._show(rows, at, max(0, len(rows) - self.lines))
        else:
            top = max(0, at - min(self.cursor.y, self.lines - 1))
            self._show(rows[: top + self.lines], at, top)

    def _cut(self, rows: list[Row], at: int) -> None:
        """Cut off rows; drop those below the cursor before others scroll."""
        for row in rows[len(self.scrollback) :]:
            row.cells, row.wraps = row.cells[: self.columns], False
        top = max(len(self.scrollback), at + 1 - self.lines)
        self._show(rows[: top + self.lines], at, top)

    def _show(self, rows: list[Row], at: int, top: int) -> None:
        self.scrollback, shown = rows[:top], rows[top:]
        self.rows = [*shown, *(Row() for _ in range(self.lines - len(shown)))]
        self.cursor.y = max(0, at - top)

    def _wrapped_anew(self, rows: list[Row], at: int) -> tuple[list[Row], int]:
        """Wrap lines for the present width; return the rows and the number of the cursor's."""
        found: list[Row] = []
        new_at, cells = 0, list[str]()
        for number, row in enumerate(rows):
            if number == at:
                assert not cells, "the cursor is not at the beginning of a line"
                new_at = len(found)
            cells += row.cells
            if not row.wraps or row is rows[-1]:
                found += _wrapped(cells, self.columns)
                cells = []
        return found, new_at


def _wrapped(cells: list[str], columns: int) -> Iterator[Row]:
    while len(cells) > columns:
        end = columns - (not cells[columns])  # a wide character is not divided
        yield Row(cells[:end], wraps=True)
        cells = cells[end:]
    yield Row(cells)
