"""Keeps facts about the user in a text file, which the user owns: one fact a line, to be read and changed by hand.

    folder/               0700
    └── facts.txt         0600

Blank lines, and lines that begin with #, are no facts and stay where they are. A change replaces the whole file in one
step, under a lock, so that no line is lost to another process or to a crash. A file that can't be read, or that is no
text file of such lines, is never changed.
"""

import os
import shlex
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from voxcli.config.paths import replace_privately
from voxcli.core.storage.locking import LOCK_SECONDS, locked
from voxcli.errors import ConfigError, StoreError
from voxcli.printable import JOINERS, UNSAFE, printable

FILE_NAME = "facts.txt"
MOST_FACTS = 200
FACT_CHARACTERS = 200  # most characters of a fact
FILE_BYTES = 1 << 18  # 200 facts of 200 characters take at most 160 KB; a larger file is something else
COMMENT = "#"
HEADER = f"{COMMENT} What voxcli remembers about you, one fact a line. Change it as you like."


def checked_fact(text: str) -> str:
    """Return a fact as it is stored: in one line of NFC, with single spaces and without control characters.

    Raises:
        ConfigError: it is empty or too long, or would be a comment.
    """
    spaced = "".join(" " if char.isspace() else char for char in text)
    kept = (char for char in spaced if char in JOINERS or unicodedata.category(char) not in UNSAFE)
    fact = " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
    if not fact:
        raise ConfigError("a fact can't be empty", hint='voxcli facts add "name: Anna"')
    if len(fact) > FACT_CHARACTERS:
        raise ConfigError(
            f"a fact has at most {FACT_CHARACTERS} characters, this one has {len(fact)}", hint="split or shorten it"
        )
    if fact.startswith(COMMENT):
        raise ConfigError(f"a fact can't begin with {COMMENT}: such a line is a comment", hint="begin with a word")
    return fact


def same_fact(fact: str) -> str:
    """Return what two facts have in common that say the same in the same words."""
    return " ".join(unicodedata.normalize("NFKC", fact).casefold().split()).rstrip(".")


class FactFile:
    """The facts in one folder. Each change is on disk when its method returns.

    Every method raises `StoreError` if the file can't be read or written, or holds something else.
    """

    def __init__(self, folder: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.path = folder / FILE_NAME
        self._lock_seconds = lock_seconds

    def read(self) -> tuple[str, ...]:
        """Return all facts, the oldest first; none if there is no file."""
        return tuple(_facts(self._text()))

    def add(self, facts: Sequence[str]) -> tuple[str, ...]:
        """Add facts, and return those that were not there already.

        Raises:
            ConfigError: a fact is not allowed, or there are too many; nothing was added.
        """
        checked = {same_fact(fact): fact for fact in map(checked_fact, facts)}
        if not checked:
            return ()
        with self._changing():
            text = self._text()
            known = _facts(text)
            seen = {same_fact(fact) for fact in known}
            new = [fact for same, fact in checked.items() if same not in seen]
            if len(known) + len(new) > MOST_FACTS:
                raise ConfigError(
                    f"{len(known)} facts are kept, and at most {MOST_FACTS} can be",
                    hint="voxcli facts delete NUMBER makes room",
                )
            if new:
                self._write("\n".join([*(text or HEADER).rstrip("\n").split("\n"), *new, ""]))
        return tuple(new)

    def delete(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """Delete facts by their numbers, from 1, and return them.

        Raises:
            ConfigError: there is no fact with one of the numbers; nothing was deleted.
        """
        with self._changing():
            lines = self._text().split("\n")
            places = [place for place, line in enumerate(lines) if _is_fact(line)]
            if wrong := [number for number in numbers if not 1 <= number <= len(places)]:
                hint = f"the last one is {len(places)}; voxcli facts list shows all" if places else "there are none yet"
                raise ConfigError(f"there is no fact {wrong[0]}", hint=hint)
            gone = {places[number - 1] for number in numbers}
            self._write("\n".join(line for place, line in enumerate(lines) if place not in gone))
        return tuple(lines[place].strip() for place in sorted(gone))

    def delete_words(self, words: str) -> str:
        """Delete the one fact that has all these words, and return it.

        Raises:
            ConfigError: there is no such fact, or more than one.
        """
        wanted = same_fact(words)
        facts = self.read()
        exact = [number for number, fact in enumerate(facts, 1) if same_fact(fact) == wanted]
        parts = [
            number
            for number, fact in enumerate(facts, 1)
            if wanted and all(word in same_fact(fact) for word in wanted.split())
        ]
        found = exact[:1] or parts
        if not found:
            raise ConfigError("no fact has all of these words", hint="voxcli facts list shows all")
        if len(found) > 1:
            few = "; ".join(facts[number - 1] for number in found[:5])
            raise ConfigError(f"{len(found)} facts have all of these words: {few}", hint="give more words of the one")
        fact = facts[found[0] - 1]
        with self._changing():
            lines = self._text().split("\n")
            self._write("\n".join(line for line in lines if not (_is_fact(line) and line.strip() == fact)))
        return fact

    def edit(self, run_editor: Callable[[Path], None], edit_again: Callable[[ConfigError], bool]) -> bool:
        """Let the user edit a copy of the file, and put it in place if it is valid; return whether it has changed.

        Facts that another process adds meanwhile are kept.

        Args:
            run_editor: opens a file and returns when the user is done.
            edit_again: asked about a copy that is not valid.

        Raises:
            ConfigError: the copy is not valid and the user gave up, or the file was changed otherwise meanwhile. The
                file is unchanged; in the latter case the copy stays.
        """
        before = self._text() or f"{HEADER}\n"
        copy = self.path.with_name("facts.edited.txt")
        with _errors(copy, "written"):
            replace_privately(copy, before)
        is_needed = False
        try:
            while True:
                run_editor(copy)
                after = _read(copy)
                try:
                    _check(after)
                    break
                except ConfigError as error:
                    if not edit_again(error):
                        raise
            if after == before:
                return False
            with self._changing():
                now = self._text() or f"{HEADER}\n"
                if is_needed := not now.startswith(before):
                    raise ConfigError(f"{self.path} has changed meanwhile", hint=f"what you wrote is in {copy}")
                added = now[len(before) :]
                self._write("\n".join([after.rstrip("\n"), added]) if added else after)
            return True
        finally:
            if not is_needed:
                with suppress(OSError):
                    copy.unlink()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock on the file for the time of a change."""
        with _errors(self.path, "written"):
            for folder in reversed([folder for folder in self.path.parents if not folder.exists()]):
                folder.mkdir(mode=0o700)
            with locked(self.path.with_name(f".{FILE_NAME}.lock"), self._lock_seconds):
                yield

    def _text(self) -> str:
        """Return the text of the file; empty if there is none."""
        try:
            return _read(self.path)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError) and not self.path.is_symlink():
                return ""
            raise

    def _write(self, text: str) -> None:
        # The file is replaced, for which its folder has to be writable, not the file itself.
        with suppress(FileNotFoundError):
            if not stat.S_IMODE(self.path.stat().st_mode) & stat.S_IWUSR:
                raise StoreError(
                    f"{self.path} can't be written: it is read-only", hint=f"chmod u+w {_quoted(self.path)}"
                )
        if len(text.encode()) > FILE_BYTES:
            raise StoreError(
                f"{self.path} would have more than {FILE_BYTES} bytes", hint="shorten it: voxcli facts edit"
            )
        replace_privately(self.path, text)


def _facts(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if _is_fact(line)]


def _is_fact(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith(COMMENT)


def _check(text: str) -> None:
    """Raise ConfigError for a text whose lines are not allowed."""
    facts = 0
    for number, line in enumerate(text.split("\n"), 1):
        if _is_fact(line):
            facts += 1
            try:
                checked_fact(line)
            except ConfigError as error:
                raise ConfigError(f"line {number}: {error.message}", hint=error.hint) from error
    if facts > MOST_FACTS:
        raise ConfigError(f"these are {facts} facts, and at most {MOST_FACTS} can be kept", hint="delete some")


def _read(path: Path) -> str:
    """Return the text of a file of facts. Raises StoreError."""
    with _errors(path, "read"):
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"{path} can't be read: it is not a regular file", hint="move it elsewhere")
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
    if len(content) > FILE_BYTES:
        raise StoreError(f"{path} has more than {FILE_BYTES} bytes", hint="it is no file of facts; move it elsewhere")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StoreError(
            f"{path} is damaged: not UTF-8 at byte {error.start}", hint="correct it in an editor, or move it elsewhere"
        ) from error
    if "\0" in text:
        raise StoreError(f"{path} is damaged: it has zero bytes", hint="correct it in an editor, or move it elsewhere")
    return text.replace("\r\n", "\n")


@contextmanager
def _errors(path: Path, purpose: str) -> Iterator[None]:
    """Turn errors of the file system into `StoreError`. `purpose` completes "it can't be ..."."""
    try:
        yield
    except OSError as error:
        hint = "try again when it is done" if isinstance(error, TimeoutError) else f"ls -la {_quoted(path.parent)}"
        raise StoreError(f"{path} can't be {purpose}: {printable(error.strerror or str(error))}", hint=hint) from error


def _quoted(path: Path) -> str:
    return shlex.quote(os.fspath(path))
