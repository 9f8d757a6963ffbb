"""Searches the turns of the store for words: with SQLite's FTS5, or with LIKE where FTS5 is missing or finds nothing.

The index is built in memory for each search, so that no file keeps the text of a deleted session. What is searched is
what people typed, transcripts and replies; placeholders are left out.
"""

import sqlite3
from contextlib import suppress

TEXTS = """CASE WHEN user GLOB '[[]User audio input - *s]' THEN '' ELSE user END AS typed,
    prompt, coalesce(transcript, '') AS transcript, reply"""

Place = tuple[int, int]  # id of a session, number of a turn


def find(connection: sqlite3.Connection, text: str, condition: str) -> list[Place]:
    """Return the turns in which all words of `text` occur, at the beginning of words if possible.

    Args:
        text: any text; none of it has a special meaning.
        condition: SQL condition that selects the turns to search.

    Raises:
        sqlite3.Error: the turns can't be read.
    """
    words = text.replace("\0", " ").split()
    if not words:
        return []
    with suppress(sqlite3.OperationalError):  # this SQLite has no FTS5
        if found := _indexed(connection, words, condition):
            return found
    return _containing(connection, words, condition)


def _indexed(connection: sqlite3.Connection, words: list[str], condition: str) -> list[Place]:
    """Search with FTS5. A word in quotes has no special meaning in its query language."""
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute(
        """CREATE VIRTUAL TABLE temp.texts USING fts5(
            session_id UNINDEXED, number UNINDEXED, typed, prompt, transcript, reply,
            tokenize = 'unicode61 remove_diacritics 2')"""
    )
    try:
        connection.execute(
            f"INSERT INTO temp.texts SELECT session_id, number, {TEXTS} FROM turns WHERE {condition}"  # noqa: S608
        )
        query = " ".join('"{}"*'.format(word.replace('"', '""')) for word in words)
        return connection.execute("SELECT session_id, number FROM temp.texts(?)", (query,)).fetchall()
    finally:
        connection.execute("DROP TABLE temp.texts")


def _containing(connection: sqlite3.Connection, words: list[str], condition: str) -> list[Place]:
    """Search for parts of words, as scripts without spaces between words need."""
    tests = " AND ".join(
        ["typed || ' ' || prompt || ' ' || transcript || ' ' || reply LIKE ? ESCAPE '\\'"] * len(words)
    )
    patterns = ["%" + word.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%" for word in words]
    return connection.execute(
        f"""SELECT session_id, number FROM (SELECT session_id, number, {TEXTS} FROM turns WHERE {condition})
        WHERE {tests}""",  # noqa: S608 - constants
        patterns,
    ).fetchall()
