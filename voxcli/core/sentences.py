"""Cuts a stream of deltas into pieces that can be spoken."""

# ruff: noqa: RUF001 - the marks of other scripts are meant

import re

FIRST_CLAUSE_CHARS = 24  # about 1.5 s of speech, in which any model writes the next piece
LONGEST_PIECE_CHARS = 240  # about 16 s of speech; nearly every sentence is shorter
LONG_FIRST_PIECE_CHARS = 80  # about 5 s of speech: any clause may end it
WIDE_CHARS_WEIGHT = 3  # a Chinese character or a kana takes as long to speak as three letters

_CLOSERS = "\"'”’»›)\\]}*_」』】）〉》"
_MARK = re.compile(
    rf"""(?P<end>[.!?…。！？｡]+[{_CLOSERS}]*)      # may end a sentence
       | (?P<clause>[,;:，、；：—–-]+[{_CLOSERS}]*)  # may end a clause
       | (?P<code>`+|~+)
       | (?P<line>\n)
       | (?P<space>[^\S\n])""",
    re.VERBOSE,
)
_WIDE_MARKS = frozenset("。！？｡，、；：—")  # end a sentence or clause without a space after them
_BLANKS = re.compile(r"[^\S\n]*")
_INFO = re.compile(r"[^\S\n]*[^\s`]*[^\S\n]*")  # rest of the line that opens a code block
_LAST_WORD = re.compile(r"(?<![^\s\"'“‘«(\[*_])[^\W\d_]+(?:\.[^\W\d_]+)*$")
_NEXT_WORD = re.compile(r"\s+[\"'“‘«(*_]*(?P<first>[^\s,;:.!?…—–])[^\s,;:.!?…—–]*(?P<after>[\s,;:.!?…—–])")
_LONGEST_WORD_CHARS = 40  # Text is held back for this long to see whether a clause goes on.
_LIST_NUMBER = re.compile(r"[\s#*>_(-]*\d{1,3}$")

_NEVER_LAST = frozenset(  # a name, a number or an explanation follows
    """
    approx bsp bzw capt cf col d.h dr dra e.g eg fr gen gov hon hr i.e ie lt m mlle mme mr mrs ms mt
    ph.d pres prof rep rev sen sgt sr sra st usw vs z.b
    """.split()  # noqa: SIM905 - a list of words is read more easily so
)
_BEFORE_NUMBER = frozenset(
    "apr art aug ch dec eq feb fig figs jan jul jun mar no nos nov nr oct p pp sec sep sept vol".split()  # noqa: SIM905
)
_MAY_BE_LAST = frozenset({"a.m", "p.m", "I"})  # though they look like initials


class PieceCutter:
    """Cuts streamed text into pieces that can be spoken one by one.

    A piece ends after a sentence, at the end of a line, or after `LONGEST_PIECE_CHARS`. The first piece may end after
    a clause of three words and `FIRST_CLAUSE_CHARS`, so that the voice can start early. It does not end within an
    enumeration, a date or before a single word, where a voice would sound chopped; nor does it consist of a line of
    one or two words, unless that is a sentence. A code block is never cut. The joined pieces equal the joined deltas,
    and do not depend on how the text was divided into deltas: text is held back while later text could still change
    where a piece ends.
    """

    def __init__(self) -> None:
        self._text = ""  # text not cut yet
        self._first = True
        self._line_start = True

    def feed(self, delta: str) -> list[str]:
        """Add a delta; return the pieces that are complete now."""
        self._text += delta
        return self._pieces(final=False)

    def flush(self) -> list[str]:
        """Return the rest as pieces; the next delta begins a new text."""
        pieces = self._pieces(final=True)
        self._first = self._line_start = True
        return pieces

    def _pieces(self, *, final: bool) -> list[str]:
        pieces = []
        start = 0
        while start < len(self._text):
            end = _Scan(self._text, start, self._first, self._line_start, final).end()
            if end is None:
                break
            pieces.append(self._text[start:end])
            self._first = self._first and not any(map(str.isalnum, pieces[-1]))
            self._line_start = pieces[-1].endswith("\n")
            start = end
        self._text = self._text[start:]
        return pieces


class _Unsure(Exception):  # noqa: N818 - a signal, not an error
    """The decision depends on text that has not arrived yet."""


class _Scan:
    """Searches for the end of the piece that begins at `start`.

    Marks are judged from left to right, each once all the text that decides about it has arrived. Therefore the
    division into deltas does not matter.
    """

    def __init__(self, text: str, start: int, first: bool, line_start: bool, final: bool) -> None:
        self._text = text
        self._start = start
        self._first = first
        self._line_start = line_start
        self._final = final  # no text follows
        self._space = 0  # last space: a piece that is too long may be cut there
        self._clause = 0  # last clause end: a better place to cut

    def end(self) -> int | None:
        """Return where the piece ends; None if more text is needed to know."""
        limit = self._start + LONGEST_PIECE_CHARS
        position = self._start
        try:
            while mark := self._next_mark(position, limit):
                cut, position = self._judge(mark)
                if cut:
                    return cut
        except _Unsure:
            return None
        if position < limit and len(self._text) < limit:
            return len(self._text) if self._final else None
        return max(position, limit) if position > limit else self._cut_for_length(limit)

    def _next_mark(self, position: int, limit: int) -> re.Match[str] | None:
        """Return the next mark that begins before `limit`; it may end after it."""
        begun = _MARK.search(self._text, position, limit)
        return begun and _MARK.match(self._text, begun.start())

    def _cut_for_length(self, limit: int) -> int:
        if self._clause - self._start > LONGEST_PIECE_CHARS // 2:
            return self._clause
        return self._space or limit

    def _judge(self, mark: re.Match[str]) -> tuple[int, int]:
        """Return where to cut (0: not here) and where to continue the search."""
        match mark.lastgroup:
            case "end":
                return self._after(mark) if self._ends_sentence(mark) else 0, mark.end()
            case "clause":
                return self._judge_clause(mark), mark.end()
            case "code":
                return 0, self._end_of_code(mark)
            case "line" if self._may_end_piece(self._text[self._start : mark.start()]):
                return mark.end(), mark.end()
        self._space = mark.end()
        return 0, mark.end()

    def _may_end_piece(self, line: str) -> bool:
        """Return whether a line is a piece of its own; as the first, one or two words are not, unless a sentence."""
        words = sum(any(map(str.isalnum, word)) for word in line.split())
        if not self._first or words == 0:
            return bool(line.strip())
        is_sentence = line.rstrip(_CLOSERS + " ").endswith(tuple(".!?…。！？｡"))
        return words > 2 or is_sentence or _weight(line) >= FIRST_CLAUSE_CHARS

    def _peek(self, position: int) -> str:
        """Return the character at `position`; empty at the end of the text."""
        if position >= len(self._text) and not self._final:
            raise _Unsure
        return self._text[position : position + 1]

    def _after(self, mark: re.Match[str]) -> int:
        """Return the position after a mark and the one blank that may follow it."""
        return mark.end() + self._peek(mark.end()).isspace()

    def _ends_sentence(self, mark: re.Match[str]) -> bool:
        following = self._peek(mark.end())
        if _WIDE_MARKS.intersection(mark[0]) or not following:
            return True
        if not following.isspace() or following == "\n":
            return False  # the newline ends the piece
        blanks = _BLANKS.match(self._text, mark.end())
        following = self._peek(blanks.end() if blanks else mark.end())
        if following.islower():
            return False
        return not mark[0].startswith(".") or mark[0].startswith("..") or not self._is_abbreviation(mark, following)

    def _is_abbreviation(self, mark: re.Match[str], following: str) -> bool:
        before = self._text[self._start : mark.start()]
        _, newline, line = before.rpartition("\n")
        if _LIST_NUMBER.match(line):
            return self._line_start or bool(newline)
        word = _LAST_WORD.search(before)
        if not word or word[0] in _MAY_BE_LAST:
            return False
        folded = word[0].casefold()
        if folded in _NEVER_LAST or (folded in _BEFORE_NUMBER and following.isdigit()):
            return True
        return all(len(part) == 1 and part.isascii() for part in folded.split("."))  # U.S., J. Smith

    def _judge_clause(self, mark: re.Match[str]) -> int:
        following = self._peek(mark.end())
        if not following or not (following.isspace() or _WIDE_MARKS.intersection(mark[0])):
            return 0
        if "-" in mark[0] and not self._text[mark.start() - 1 : mark.start()].isspace():
            return 0
        self._clause = self._after(mark)
        return self._clause if self._first and self._is_first_clause(mark) else 0

    def _is_first_clause(self, mark: re.Match[str]) -> bool:
        """Return whether a clause is long enough to be the first piece, and the next one does not end at once."""
        clause = self._text[self._start : mark.end()]
        weight = _weight(clause)
        if weight < FIRST_CLAUSE_CHARS:
            return False
        if weight >= LONG_FIRST_PIECE_CHARS or weight > len(clause) or _WIDE_MARKS.intersection(mark[0]):
            return True  # Scripts without blanks have no words to count.
        return len(clause.split()) > 2 and self._clause_goes_on(mark.end())

    def _clause_goes_on(self, position: int) -> bool:
        """Return whether a word follows that is no number and does not end a clause itself."""
        limit = position + _LONGEST_WORD_CHARS
        if word := _NEXT_WORD.match(self._text, position, limit):
            return word["after"].isspace() and not word["first"].isdigit()
        if len(self._text) < limit and not self._final:
            raise _Unsure
        return False

    def _end_of_code(self, mark: re.Match[str]) -> int:
        """Return where to continue the search: after the code that backticks or tildes enclose, if they enclose any."""
        self._peek(mark.end())
        ticks = mark[0]
        if ticks[0] == "~" and len(ticks) < 3:
            return mark.end()
        if len(ticks) >= 3:
            info = _INFO.match(self._text, mark.end())
            rest_of_line = info.end() if info else mark.end()
            if self._peek(rest_of_line) == "\n":
                return self._end_of_block(ticks, rest_of_line)
        return self._end_of_inline_code(ticks, mark.end())

    def _end_of_block(self, ticks: str, position: int) -> int:
        closing = re.compile(rf"\n[^\S\n]*{ticks}{ticks[0]}*").search(self._text, position)
        if closing:
            self._peek(closing.end())
            return closing.end()
        if not self._final:
            raise _Unsure
        return len(self._text)

    def _end_of_inline_code(self, ticks: str, position: int) -> int:
        limit = self._start + LONGEST_PIECE_CHARS
        closing = re.compile(rf"(?<!{ticks[0]}){ticks}(?!{ticks[0]})|\n").search(self._text, position, limit)
        if closing:
            return position if closing[0] == "\n" else closing.end()
        if len(self._text) < limit and not self._final:
            raise _Unsure
        return position


def _weight(text: str) -> int:
    """Return how long the text takes to speak, in letters."""
    return len(text) + (WIDE_CHARS_WEIGHT - 1) * sum(char >= "\u2e80" for char in text)
