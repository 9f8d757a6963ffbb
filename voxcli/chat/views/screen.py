"""What a terminal shows below the finished turns: the present turn, the state, and the keys that do something now.

`Screen` depends on the events and the clock alone; `voxcli.chat.views.terminal` paints it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.cells import get_character_cell_size
from rich.console import Console
from rich.text import Text

from voxcli.chat.events import (
    ApprovalAnswered,
    ApprovalAsked,
    InputLevel,
    LiveEvent,
    SentenceSpoken,
    State,
    TurnFailed,
    TurnRetracted,
    TurnStarted,
    TurnTaken,
)
from voxcli.chat.views.situation import Situation
from voxcli.chat.views.words import approval_question, question_text
from voxcli.core.protocols import Transcript, Utterance
from voxcli.core.sentences import PieceCutter
from voxcli.core.tool_words import ASKED_CHARACTERS, call_line, result_line
from voxcli.core.tools import ToolCall, ToolCalled, ToolResult, ToolReturned
from voxcli.core.turn import ReplyDelta
from voxcli.core.understanding import Understood
from voxcli.printable import printable

SPINS_PER_SECOND = 8
SILENT_DBFS = -60.0  # the input level at which the bar is empty
LEVEL_STEP_DB = 1.0  # a smaller change of the level is not shown; one of 24 cells is 2.5 dB
BAR_CELLS = range(4, 25)  # lengths that the bar may have
WIDE = 40  # columns from which on the state is padded, so that the bar keeps its place
LONGEST_WORD = len("listening")
MOST_ROWS = 12  # a terminal may have become less high than it was when the rows were made
# A terminal that is made narrower wraps what it shows. Rows that still fit then never leave the screen, so they can
# always be erased.
NARROWEST = 20
MOST_TOOL_ROWS = 4  # While a turn lasts, its last calls are shown.
LEAST_ASKED_CHARACTERS = 40  # a question with fewer characters of its arguments is not worth its place

STYLES: dict[State, str] = {
    "starting": "yellow",
    "listening": "green",
    "hearing": "bold cyan",
    "thinking": "yellow",
    "asking": "bold yellow",
    "using tool": "yellow",
    "speaking": "magenta",
    "muted": "bold red",
    "asleep": "dim",
}
MOVING: tuple[State, ...] = ("starting", "thinking", "using tool")  # a spinner turns and seconds are counted
GLYPHS: dict[State, str] = {
    "listening": "○",
    "hearing": "●",
    "asking": "?",
    "speaking": "▶",
    "muted": "✕",
    "asleep": "◌",
}
WARNING = "bold red"
SPINNER, SPINNER_ASCII = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
SPOKEN, PRESENT, TO_COME = "", "bold", "dim"  # styles of a reply's sentences


class Screen:
    """The rows below the finished turns.

    Args:
        clock: returns monotonic seconds.
        ascii_only: use ASCII characters only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, ascii_only: bool = False) -> None:
        self._clock = clock
        self._ascii_only = ascii_only
        self._console = Console(width=NARROWEST, height=1, force_terminal=False)  # Wraps text, and writes nothing.
        self.situation = Situation()
        self._since = clock()
        self._preparing = "starting"  # What is being prepared.
        self._share: float | None = None
        self._dbfs = SILENT_DBFS
        self._speech_seconds: float | None = None
        self._utterances: deque[Utterance] = deque()  # The present turn's, and that of one that waits.
        self._transcript = ""
        self._reply = _LiveReply()
        self._tools: list[ToolCall | ToolResult] = []  # The present turn's.
        self._asked: ToolCall | None = None

    def starting(self, what: str, share: float | None) -> None:
        self._preparing, self._share = printable(what), share

    def unanswered(self, utterance: Utterance) -> list[Text]:
        """Return the rows that stay of the present turn, which failed: the question, and the reply so far."""
        reply = [Text(printable(self._reply.text, keep="\n\t").strip())] if self._reply.text.strip() else []
        tools = [Text(result_line(each), "dim") for each in self._tools if isinstance(each, ToolResult)]
        return [question_row(question_text(utterance, self._transcript)), *tools, *reply]

    @property
    def is_moving(self) -> bool:
        """Whether the rows change with time, without an event."""
        return self.situation.state in MOVING

    def update(self, event: LiveEvent) -> bool:
        """Apply an event and return whether the rows may have changed; any order of events is fine."""
        state, warning = self.situation.state, self.situation.warning
        self.situation.update(event)
        if self.situation.state != state:
            self._on_state_changed(state, self.situation.state)
        match event:
            case InputLevel(dbfs, speech_seconds):
                dbfs = max(SILENT_DBFS, dbfs)
                is_same_level = abs(dbfs - self._dbfs) < LEVEL_STEP_DB
                if is_same_level and speech_seconds == self._speech_seconds and warning == self.situation.warning:
                    return False
                self._dbfs, self._speech_seconds = dbfs, speech_seconds
            case TurnStarted(utterance):
                self._utterances.append(utterance)
            case Transcript(text):
                self._transcript = text
            case Understood(text, None):
                self._transcript = self._transcript or text
            case ReplyDelta(text):
                self._reply.add(text)
            case SentenceSpoken(text):
                self._reply.spoken_chars += len(text)
            case ToolCalled() | ApprovalAsked() | ApprovalAnswered() | ToolReturned():
                self._update_tools(event)
            case TurnRetracted():
                self._end_turn(self._utterances.pop)
            case TurnTaken() | TurnFailed():
                self._on_turn_over(event)
        return True

    def _update_tools(self, event: ToolCalled | ApprovalAsked | ApprovalAnswered | ToolReturned) -> None:
        self._asked = None
        match event:
            case ToolCalled(call):
                self._reply.flush()
                self._tools.append(call)
            case ApprovalAsked(call):
                self._asked = call
            case ToolReturned(result):
                self._tools = [*self._tools[:-1], result]  # In place of its call, because one runs at a time.

    def _on_turn_over(self, event: TurnTaken | TurnFailed) -> None:
        if isinstance(event, TurnFailed) and event.utterance is None:  # The turn was taken, or there was none.
            self._clear_reply()
        else:
            self._end_turn(self._utterances.popleft)

    def _end_turn(self, remove_utterance: Callable[[], Utterance]) -> None:
        with suppress(IndexError):  # none: it was a repeated reply, or the turn was not begun
            remove_utterance()
        self._clear_reply()

    def _on_state_changed(self, before: State, state: State) -> None:
        self._since, self._speech_seconds = self._clock(), None
        goes_on = before in ("asking", "using tool") and state == "thinking"
        if state in ("listening", "asleep", "thinking") and not goes_on:  # a repeated reply ends without a turn
            self._clear_reply()
        if state in ("listening", "asleep"):
            self._utterances.clear()

    def _clear_reply(self) -> None:
        self._transcript, self._reply = "", _LiveReply()
        self._tools, self._asked = [], None

    def rows(self, width: int, height: int) -> list[Text]:
        """Return rows that fit the terminal; of a long reply, the part that is being spoken."""
        below = [self._state_row(width)]
        if self.situation.state != "starting" and height > len(below) + 1 and (keys := self._keys_row(width)).plain:
            below.append(keys)
        question_rows = self._question_rows(width)
        question_rows += self._tool_rows(width, height - _rows_when_narrow([*question_rows, *below]) - 1)
        room = height - _rows_when_narrow([*question_rows, *below]) - 1  # an empty row stands above the state
        if room < 0:
            return below
        most = MOST_ROWS - len(question_rows) - len(below) - 1
        turn = [*question_rows, *self._reply_rows(width, room, most)]
        return [*turn, Text(), *below] if turn else below

    def _question_rows(self, width: int) -> list[Text]:
        """Return the question in one row, so that nothing moves when its transcript arrives."""
        if not self._utterances:
            return []
        text = " ".join(question_text(self._utterances[0], self._transcript).split())
        return [_cropped(question_row(text), width, ascii_only=self._ascii_only)]

    def _tool_rows(self, width: int, room: int) -> list[Text]:
        """Return the question whether a tool may run, or else a row for each of the last calls, as far as they fit.

        Args:
            room: rows of NARROWEST columns that are free.
        """
        characters = ASKED_CHARACTERS
        while self._asked and characters >= LEAST_ASKED_CHARACTERS:
            question = Text(approval_question(self._asked, characters), "bold yellow")
            rows = list(question.wrap(self._console, width))
            if _rows_when_narrow(rows) <= room and len(rows) <= MOST_ROWS // 2:
                return rows
            characters //= 2
        rows = [_cropped(self._tool_row(each), width, ascii_only=self._ascii_only) for each in self._tools]
        most = min(MOST_TOOL_ROWS, max(0, room) // max(1, -(-width // (NARROWEST - 1)) + 1))
        return rows[-most:] if most else []

    def _tool_row(self, tool: ToolCall | ToolResult) -> Text:
        if isinstance(tool, ToolResult):
            return Text(result_line(tool), "dim")
        return Text(f"{call_line(tool)} {'...' if self._ascii_only else '…'}", "dim")

    def _reply_rows(self, width: int, room: int, most: int) -> list[Text]:
        """Return the rows of the reply that fit.

        Args:
            room: rows of NARROWEST columns that are free.
            most: the most rows.
        """
        if not self._reply.text.strip():
            return []
        text = self._reply.styled(self.situation.is_spoken, self.situation.state == "speaking")
        rows = list(text.wrap(self._console, width, tab_size=4))
        start = end = _row_of_the_voice(rows)
        while end < len(rows) and end - start < most and _rows_when_narrow(rows[start : end + 1]) <= room:
            end += 1
        while start > 0 and end - start < most and _rows_when_narrow(rows[start - 1 : end]) <= room:
            start -= 1
        return rows[start:end]

    def _state_row(self, width: int) -> Text:
        situation = self.situation
        style = WARNING if situation.warning else STYLES[situation.state]
        word = self._preparing if situation.state == "starting" else situation.label
        padding = " " * (LONGEST_WORD - len(word)) if width >= WIDE else ""
        row = Text.assemble((f"{self._glyph()} {word}{padding}", style))
        if situation.muted and situation.state != "muted":
            row.append(" muted", STYLES["muted"])
        seconds = self._seconds()
        after = f" {seconds:.1f} s" if seconds is not None else ""
        cells = min(width - row.cell_len - len(after) - 1, BAR_CELLS[-1])
        share = self._share if situation.state == "starting" else self._level()
        if share is not None and cells in BAR_CELLS:
            row.append(" ").append(self._bar(share, cells, style))
        row.append(after, "dim")
        return _cropped(row, width, ascii_only=self._ascii_only)

    def _keys_row(self, width: int) -> Text:
        row = Text()
        for key, does in self.situation.keys_that_fit(width):
            row.append("  " if row else "").append(key, "bold").append(f" {does}", "dim")
        return _cropped(row, width, ascii_only=self._ascii_only)

    def _glyph(self) -> str:
        if self.situation.warning:
            return "!"
        state = self.situation.state
        if state in GLYPHS:
            return "*" if self._ascii_only else GLYPHS[state]
        spinner = SPINNER_ASCII if self._ascii_only else SPINNER
        return spinner[int((self._clock() - self._since) * SPINS_PER_SECOND) % len(spinner)]

    def _seconds(self) -> float | None:
        """Return the seconds since speech started, or since the wait for a reply or for a part began."""
        if self.situation.state in MOVING:
            return self._clock() - self._since
        return None if self.situation.muted else self._speech_seconds

    def _level(self) -> float | None:
        no_level = self.situation.muted or self.situation.warning or self.situation.state == "asleep"
        return None if no_level else 1 - self._dbfs / SILENT_DBFS

    def _bar(self, share: float, cells: int, style: str) -> Text:
        full, empty = ("#", "-") if self._ascii_only else ("━", "─")
        filled = round(min(max(0.0, share), 1.0) * cells)
        return Text.assemble((full * filled, style), (empty * (cells - filled), "dim"))


def question_row(text: str) -> Text:
    """Return the user's side of a turn."""
    return Text.assemble(("you  ", "bold cyan"), (text, "cyan"))


class _LiveReply:
    """A reply that is being generated and spoken, and where its sentences end."""

    def __init__(self) -> None:
        self.text = ""
        self.spoken_chars = 0
        self._cutter = PieceCutter()  # the one that cuts the reply for the voice gives the same pieces
        self._ends = [0]  # Ends of the complete pieces.

    def add(self, delta: str) -> None:
        self.text += delta
        for piece in self._cutter.feed(delta):
            self._ends.append(self._ends[-1] + len(piece))

    def flush(self) -> None:
        """Note that the voice says all of the text, because nothing follows for a while."""
        for piece in self._cutter.flush():
            self._ends.append(self._ends[-1] + len(piece))

    def styled(self, is_spoken: bool, is_speaking: bool) -> Text:
        """Return the text; what was spoken, is being spoken and is still to come have styles of their own."""
        if not is_spoken:
            return Text(printable(self.text.lstrip(), keep="\n\t"))
        start = min(self.spoken_chars, len(self.text))
        end = next((each for each in self._ends if each > start), len(self.text)) if is_speaking else start
        blank = len(self.text) - len(self.text.lstrip())
        cuts = [self.text[blank:start], self.text[max(start, blank) : end], self.text[max(end, blank) :]]
        safe = [printable(cut, keep="\n\t") for cut in cuts]
        return Text.assemble(*zip(safe, (SPOKEN, PRESENT, TO_COME), strict=True))


def _row_of_the_voice(rows: Sequence[Text]) -> int:
    """Return the row where the sentence that is being spoken begins, or else the text to come; or the last row."""
    for style in (PRESENT, TO_COME):
        for number, row in enumerate(rows):
            if any(span.style == style for span in row.spans):
                return number
    return len(rows) - 1


def _rows_when_narrow(rows: Sequence[Text]) -> int:
    """Return the most rows that a terminal of NARROWEST columns would make of these.

    Some terminals draw the code points of an emoji one by one. A wide character may leave a cell at the end of a row.
    """
    cells = (sum(map(get_character_cell_size, row.plain)) for row in rows)
    return sum(max(1, -(-each // (NARROWEST - 1))) for each in cells)


def _cropped(row: Text, width: int, *, ascii_only: bool) -> Text:
    row.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return row
