"""What can be done with a stored session: undo and redo, fork, rename and search; and the names that sessions get."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxcli.core.session import NAME_LENGTH, Turn, automatic_name, numbered_name, session_name
from voxcli.core.storage.database import FILE_NAME, MIGRATIONS
from voxcli.core.storage.search import find
from voxcli.core.storage.store import Store
from voxcli.core.storage.stored import StageTimes, TurnDetails

SPOKEN = "[User audio input - 35200 samples, 2.20s]"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path) as store:
        yield store


def replies(store: Store, name: str = "kitchen") -> list[tuple[int, str]]:
    stored = store.stored(name)
    return [(each.number, each.turn.reply) for each in stored.turns] if stored else []


def add(store: Store, *texts: str, name: str = "kitchen") -> None:
    for text in texts:
        store.append(name, Turn(SPOKEN, text), instructions="Be short.")


def test_an_undone_turn_comes_back_with_redo_in_the_order_of_undoing(store: Store) -> None:
    add(store, "One.", "Two.", "Three.")
    assert (store.undo("kitchen"), store.undo("kitchen")) == (3, 2)
    assert replies(store) == [(1, "One.")]
    assert store.redo("kitchen") == 2
    assert replies(store) == [(1, "One."), (2, "Two.")]
    assert (store.redo("kitchen"), store.redo("kitchen")) == (3, None)
    assert [number for number, _ in replies(store)] == [1, 2, 3]


def test_a_new_turn_takes_the_place_of_what_was_undone(store: Store) -> None:
    add(store, "One.", "Two.")
    store.undo("kitchen")
    add(store, "Another two.")
    assert replies(store) == [(1, "One."), (2, "Another two.")]
    assert store.redo("kitchen") is None


def test_undo_of_a_turn_by_its_number_leaves_those_of_other_processes(store: Store) -> None:
    add(store, "Mine.", "Theirs.")
    assert store.undo("kitchen", 1) == 1
    assert store.undo("kitchen", 1) is None
    assert replies(store) == [(2, "Theirs.")]


def test_a_session_whose_turns_are_all_undone_is_not_listed_but_can_be_redone(store: Store) -> None:
    add(store, "One.")
    store.undo("kitchen")
    assert store.summaries() == []
    assert store.session("kitchen") is None
    assert store.undo("kitchen") is None
    store.redo("kitchen")
    assert [each.name for each in store.summaries()] == ["kitchen"]


def test_a_fork_goes_its_own_way(store: Store) -> None:
    add(store, "One.", "Two.", "Three.")
    store.undo("kitchen")
    assert store.fork("kitchen", "attic", at=1) == "attic"
    assert store.fork("kitchen", "attic") == "attic 2"
    add(store, "Four.", name="attic")
    assert replies(store, "attic") == [(1, "One."), (2, "Four.")]
    assert replies(store, "attic 2") == [(1, "One."), (2, "Two.")]
    assert replies(store) == [(1, "One."), (2, "Two.")]
    forked, original = store.stored("attic"), store.stored("kitchen")
    assert forked
    assert original
    assert forked.instructions == "Be short."
    assert forked.turns[0] == original.turns[0]


def test_a_session_is_renamed_unless_the_name_is_taken(store: Store) -> None:
    add(store, "One.")
    add(store, "Two.", name="attic")
    assert not store.rename("kitchen", "attic")
    assert store.rename("kitchen", "cellar")
    assert {each.name for each in store.summaries()} == {"attic", "cellar"}
    assert replies(store, "cellar") == [(1, "One.")]


def test_a_created_session_never_takes_the_name_of_another(store: Store) -> None:
    names = [store.create("2026-12-01 hello", "Be short.") for _ in range(3)]
    assert names == ["2026-12-01 hello", "2026-12-01 hello 2", "2026-12-01 hello 3"]
    assert store.summaries() == []


def test_latency_comes_back_as_it_was_stored(store: Store) -> None:
    latency = StageTimes(612.5, 700, None)
    store.append("kitchen", Turn(SPOKEN, "One."), TurnDetails(latency=latency))
    stored = store.stored("kitchen")
    assert stored
    assert stored.turns[0].details.latency == latency


def test_a_store_of_an_older_voxcli_opens_and_can_be_undone(tmp_path: Path) -> None:
    with Store.open(tmp_path, migrations=MIGRATIONS[:2]), closing(sqlite3.connect(tmp_path / FILE_NAME)) as old:
        old.execute("INSERT INTO sessions VALUES (1, 'kitchen', '')")
        old.execute("INSERT INTO turns VALUES (1, 1, '2026-11-30T10:00:00+00:00', 'a', '', 'b', 0, '', '', NULL)")
        old.commit()
    with Store.read(tmp_path) as copy:
        assert replies(copy) == [(1, "b")]
        assert [hit.session for hit in copy.search("b")] == ["kitchen"]
    with Store.open(tmp_path) as store:
        assert store.undo("kitchen") == 1


# The persona of a session.


def test_a_session_keeps_its_persona(store: Store) -> None:
    store.append("kitchen", Turn("a", "One."), instructions="Be kind.", persona="tutor")
    store.append("kitchen", Turn("b", "Two."), instructions="Be brief.", persona="plain")
    store.append("garden", Turn("a", "One."))
    assert [store.persona(name) for name in ("kitchen", "garden", "cellar")] == ["tutor", "", None]
    assert store.persona(store.fork("kitchen", "pantry")) == "tutor"
    assert store.persona(store.create("hello", "", "interpreter:target=Łódź")) == "interpreter:target=Łódź"
    store.set_persona("kitchen", "plain", "Be plain.")
    stored = store.stored("kitchen")
    assert stored
    assert (stored.persona, stored.instructions) == ("plain", "Be plain.")
    store.set_persona("kitchen", None, "")
    assert store.persona("kitchen") == ""


def test_a_store_of_a_voxcli_without_personas_opens_and_goes_on(tmp_path: Path) -> None:
    with Store.open(tmp_path, migrations=MIGRATIONS[:4]), closing(sqlite3.connect(tmp_path / FILE_NAME)) as old:
        assert "persona" not in {row[1] for row in old.execute("PRAGMA table_info(sessions)")}
        old.execute("INSERT INTO sessions VALUES (1, 'kitchen', 'Be kind.')")
        old.execute(
            "INSERT INTO turns (session_id, number, created_at, user, prompt, reply, interrupted, engine, model)"
            " VALUES (1, 1, '2026-11-30T10:00:00+00:00', 'a', '', 'b', 0, '', '')"
        )
        old.commit()
    with Store.read(tmp_path) as copy:
        stored = copy.stored("kitchen")
        assert stored
        assert (stored.persona, stored.instructions, len(stored.turns)) == (None, "Be kind.", 1)
    with Store.open(tmp_path) as store:
        assert store.persona("kitchen") == ""
        store.append("kitchen", Turn("c", "d"), persona="tutor")
        assert store.persona("kitchen") == "", "only a new session takes it"


def test_a_persona_that_another_program_wrote_is_none(store: Store, tmp_path: Path) -> None:
    store.append("kitchen", Turn("a", "One."), persona="tutor")
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
        other.execute("UPDATE sessions SET persona = x'ff'")
        other.commit()
    stored = store.stored("kitchen")
    assert stored
    assert (store.persona("kitchen"), stored.persona) == ("", None)


# Search.


def found(store: Store, text: str) -> list[str]:
    return [hit.stored.turn.reply for hit in store.search(text)]


def test_search_finds_words_in_prompts_transcripts_and_replies(store: Store) -> None:
    store.append("a", Turn(SPOKEN, "A kettle."), TurnDetails(transcript="What boils?"))
    store.append("b", Turn("Which way to Zürich?", "Left."))
    store.append("b", Turn(SPOKEN, "東京タワーです。", prompt="Look up."))
    assert found(store, "kett") == found(store, "BOILS what") == ["A kettle."]
    assert found(store, "zurich") == ["Left."]
    assert found(store, "look") == found(store, "タワー") == ["東京タワーです。"]
    assert found(store, "kettle left") == found(store, "audio") == found(store, "") == []
    assert found(store, "l") == ["東京タワーです。", "Left."], "the newest first"


def test_search_leaves_out_what_was_undone(store: Store) -> None:
    add(store, "A kettle.")
    store.undo("kitchen")
    assert found(store, "kettle") == []


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("filled")
    with Store.open(folder) as store:
        add(store, 'say "no": 100% of a_b\\c')
    with Store.read(folder) as copy:
        yield copy


@given(
    st.text()
    | st.lists(st.sampled_from(['"', "*", "(", "NEAR", "AND", "reply:", "%", "_", "-", "^", "\0", " "])).map("".join)
)
def test_any_text_may_be_searched_for(filled: Store, text: str) -> None:
    assert len(filled.search(text)) <= 1


@pytest.mark.parametrize(
    ("text", "hits"), [("100%", 1), ("a_b", 1), ("b\\c", 1), ("aXb", 0), ('"no"', 1), ("0% of", 1)]
)
def test_signs_stand_for_themselves(filled: Store, text: str, hits: int) -> None:
    assert len(filled.search(text)) == hits


class WithoutFts5(sqlite3.Connection):
    """A connection of an SQLite that was built without FTS5."""

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if "fts5" in sql:
            raise sqlite3.OperationalError("no such module: fts5")
        return super().execute(sql, parameters)


def test_without_fts5_words_are_found_all_the_same() -> None:
    connection = sqlite3.connect(":memory:", factory=WithoutFts5)
    for statement in chain.from_iterable(MIGRATIONS):
        connection.execute(statement)
    for number, (user, reply) in enumerate([("Which way?", "Left, 100%."), (SPOKEN, "A kettle.")], 1):
        connection.execute(
            "INSERT INTO turns (session_id, number, created_at, user, prompt, reply, interrupted, engine, model)"
            " VALUES (1, ?, '', ?, '', ?, 0, '', '')",
            (number, user, reply),
        )
    for text, places in (("way left", [(1, 1)]), ("KETTLE", [(1, 2)]), ("audio", []), ("0%", [(1, 1)]), ("", [])):
        assert find(connection, text, "TRUE") == places
    connection.close()


# Names.


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["What is the capital of France?", "", "Paris."], "what is the capital"),
        (["", "", "It rains. Take a coat."], "it rains take a coat"),
        (["...", "/etc/passwd\n"], "etc passwd"),
        (["\x1b[2J\u202ehi"], "2jhi"),
        (["東京タワーはどこですか、教えてください、お願いします"], "東京タワーはどこですか、教えてください、"),
        ([], "chat"),
    ],
)
def test_an_automatic_name_is_the_day_and_the_first_words(texts: list[str], name: str) -> None:
    assert automatic_name(date(2026, 12, 1), texts) == f"2026-12-01 {name}"


@given(st.lists(st.text(), max_size=3), st.integers(1, 10**6))
def test_an_automatic_name_is_a_name(texts: list[str], number: int) -> None:
    name = numbered_name(automatic_name(date(2026, 12, 1), texts), number)
    assert session_name(name) == name
    assert len(numbered_name("x" * NAME_LENGTH, number)) <= NAME_LENGTH
