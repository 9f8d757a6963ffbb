"""`python -m benchmarks.answers`: the layouts it reads, what counts as right, its arithmetic, and that it goes on."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import answers
from benchmarks.answering.asking import Asked, ask_all
from benchmarks.answering.figures import LOST_BY_SPEECH, figures
from benchmarks.answering.intervals import mcnemar, wilson
from benchmarks.answering.matching import Kind, is_right, kind_of, words
from benchmarks.answering.questions import OPEN_ENDED, SpokenQuestion, read_questions
from benchmarks.report import Figure
from tests.support.openai_server import Exchange, OpenAIServer, refuses, says
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, read_audio
from voxcli.batch.results import Results
from voxcli.core.protocols import Engine, PassReport, Reply, Utterance
from voxcli.core.session import Session
from voxcli.errors import AudioInputError, ConfigError, ModelError, VoxError

EXAMPLES = Path(__file__).parents[2] / "examples" / "questions"
FRANCE = EXAMPLES / "capital-of-france.flac"
SETUP = {"engine": "fake", "model": "fake", "instructions": "Be short."}


# --- What counts as right ------------------------------------------------------------------------

RIGHT: list[tuple[str, str, Kind, bool | None]] = [
    ("It is **Paris**, of course.", "paris", "words", True),
    ("PARÍS!", "Paris", "words", True),
    ("The Milky-Way.", "the milky way", "words", True),
    ("Shakespeare's play.", "shakespeare", "words", True),
    ("It is not Paris.", "paris", "words", False),
    ("It is not Paris. It is Paris, after all.", "paris", "words", True),
    ("Parisians live there.", "paris", "words", False),
    ("It has four legs.", "4", "words", True),
    ("It has twenty-four legs.", "4", "words", False),
    ("", "paris", "words", False),
    ("In nineteen sixty-nine.", "1969", "words", True),
    ("That makes 1,000 of them.", "one thousand", "words", True),
    ("Four and fourteen make eighteen.", "18", "number", True),
    ("The answer is 18, because 4 and 14 make it.", "18", "number", True),
    ("I count 18: 4 oranges and 14 plums.", "18", "number", False),
    ("You have some fruit.", "18", "number", None),
    ("Yes.", "Yes", "choice", True),
    ("No, you do not return.", "yes", "choice", False),
    ("First north, then south, so the answer is yes.", "Yes", "choice", True),
    ("No turn is left out. Final answer: Yes", "yes", "choice", True),
    ("You end up elsewhere.", "no", "choice", None),
    ("The argument is not deductively valid.", "invalid", "choice", True),
    ("The argument is deductively valid.", "invalid", "choice", False),
    ("That isn't true.", "false", "choice", True),
    ("The answer is (B).", "B", "letter", True),
    ("The correct answer is **C**", "B", "letter", False),
    ("B. a dog", "B", "letter", True),
    ("c)", "C", "letter", True),
    ("Option (B) has the right order.", "(B)", "letter", True),
    ("The answer is (A).", "(B)", "letter", False),
    ("I would choose option D, because A is wrong.", "D", "letter", True),
    ("A dog barks.", "A", "letter", None),
    ("The answer is a dog.", "A", "letter", None),
]


@pytest.mark.parametrize(("reply", "answer", "kind", "expected"), RIGHT)
def test_replies_are_compared_in_a_normalised_way(reply: str, answer: str, kind: Kind, expected: bool | None) -> None:
    assert is_right(reply, [answer], kind) is expected


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes", "choice"),
        ("invalid", "choice"),
        ("12", "number"),
        ("twelve", "number"),
        ("B", "letter"),
        ("(A)", "letter"),
        ("Bell", "words"),
    ],
)
def test_the_kind_of_a_question_follows_from_its_answer(answer: str, kind: Kind) -> None:
    assert kind_of([answer]) == kind


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("zero", "0"),
        ("two hundred and five", "205"),
        ("a hundred", "100"),
        ("one thousand two hundred", "1200"),
        ("twenty twenty-six", "2026"),
        ("two thousand and eight", "2008"),
        ("two million three hundred thousand and one", "2300001"),
        ("007", "7"),
        ("18.50", "18.5"),
    ],
)
def test_numbers_in_words_and_digits_are_the_same(text: str, number: str) -> None:
    assert words(text) == [number]


def test_numbers_beside_one_another_stay_apart() -> None:
    assert words("three, four and five") == ["3", "4", "and", "5"]
    assert words("thirty forty") == ["30", "40"]


@given(st.text(max_size=200), st.sampled_from(["words", "number", "choice", "letter"]))
def test_any_reply_can_be_compared(reply: str, kind: Kind) -> None:
    answer = {"words": "paris", "number": "7", "choice": "yes", "letter": "B"}[kind]
    assert is_right(reply, [answer], kind) in (True, False, None)


# --- Intervals -----------------------------------------------------------------------------------


def test_the_interval_is_that_of_wilson() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I: the score method without continuity correction.
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


@given(total=st.integers(1, 500), share=st.floats(0, 1))
def test_an_interval_holds_the_share(total: int, share: float) -> None:
    right = round(share * total)
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1


def test_pairs_are_tested_exactly() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(3, 3) == 1


# --- Layouts -------------------------------------------------------------------------------------


def read(folder: Path, notices: list[str] | None = None) -> list[SpokenQuestion]:
    said = [] if notices is None else notices
    return list(read_questions(folder, lambda _text: AudioClip(read_audio(FRANCE).samples[:100]), said.append))


def test_our_own_set_has_answers_and_can_be_asked_in_both_ways() -> None:
    questions = [question for folder in answers.OWN_SET for question in read(folder)]
    assert len(questions) >= 20
    assert len({question.id for question in questions}) == len(questions)
    assert all(question.text and question.answers for question in questions)
    assert {question.kind for question in questions} >= {"words", "number", "choice"}
    by_id = {question.id: question for question in questions}
    assert len(by_id["capital-of-france"].clip().samples) > 10_000, "it is a recording"
    assert len(by_id["largest-ocean"].clip().samples) == 100, "it is spoken by the voice"


BBA = {"category": "navigate", "official_answer": "Yes", "file_name": "data/question_0.mp3", "id": 0}


def big_bench_audio(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "question_0.mp3").write_bytes(FRANCE.read_bytes())
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_big_bench_audio_is_read(tmp_path: Path) -> None:
    number = BBA | {"category": "object_counting", "official_answer": "8", "id": 7, "transcript": "How many?"}
    first, second = read(big_bench_audio(tmp_path / "set", BBA, number))
    assert (first.id, first.category, first.text, first.answers, first.kind) == (
        "0",
        "navigate",
        "",
        ("Yes",),
        "choice",
    )
    assert (second.id, second.text, second.kind) == ("7", "How many?", "number")
    assert first.clip().seconds > 1


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"file_name": "a.wav"},
        BBA | {"official_answer": ""},
        BBA | {"official_answer": None},
        BBA | {"file_name": "../a.mp3"},
        BBA | {"file_name": "/etc/passwd"},
        BBA | {"file_name": "..\\a.mp3"},
        [1],
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, row: Any) -> None:
    folder = big_bench_audio(tmp_path / "set", BBA, row)
    with pytest.raises(AudioInputError, match="line 2: no object with file_name and official_answer"):
        read(folder)


NO_MANIFESTS = (
    "",
    "[]",
    '{"a": 3}',
    '{"a": {"text": "?"}}',
    '{"../a": {"text": "?", "answers": ["b"]}}',
    '{"a": {"text": "?", "answers": ["b"], "kind": "guess"}}',
    '{"a": {"text": "?", "answers": []}}',
    "[" * 9999,
)


@pytest.mark.parametrize("content", NO_MANIFESTS)
def test_a_manifest_that_is_none_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(AudioInputError):
        read(tmp_path)


def test_a_folder_without_questions_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(AudioInputError) as caught:
        read(tmp_path)
    assert "metadata.jsonl" in caught.value.hint
    with pytest.raises(AudioInputError, match="no folder"):
        read(tmp_path / "missing")


def test_parquet_files_need_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path)
    assert caught.value.hint == "pip install pyarrow"


def test_voicebench_and_big_bench_audio_are_read_from_parquet(tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    sound = {"bytes": FRANCE.read_bytes(), "path": "a.wav"}
    tables: dict[str, list[dict[str, Any]]] = {
        "openbookqa/test-00000-of-00001": [{"audio": sound, "prompt": "Which? A. b B. c", "reference": "B"}] * 20,
        "sd-qa/usa-00000-of-00001": [{"audio": sound, "prompt": "Who?", "reference": "Bell"}],
        "bbh/test-00000-of-00001": [{"audio": sound, "prompt": "Is it?", "reference": "no", "id": "navigate_3"}],
        "alpacaeval/test-00000-of-00001": [{"audio": sound, "prompt": "Tell me.", "output": "Well."}],
        "data/train-00000-of-00001": [{"audio": sound, "category": "navigate", "official_answer": "Yes", "id": 5}],
    }
    for name, rows in tables.items():
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    notices: list[str] = []
    questions = {question.id: question for question in read(tmp_path, notices)}
    assert notices == [f"alpacaeval, test: {OPEN_ENDED}"]
    kinds = {question.category: question.kind for question in questions.values()}
    assert kinds == {"openbookqa": "letter", "sd-qa": "words", "bbh": "choice", "navigate": "choice"}
    assert questions["openbookqa/test/20"].text == "Which? A. b B. c"
    assert questions["train/5"].text == ""
    assert questions["sd-qa/usa/1"].clip().seconds > 1
    (tmp_path / "sd-qa" / "usa-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(AudioInputError, match="can't be read"):
        read(tmp_path)


# --- Asking --------------------------------------------------------------------------------------


@dataclass
class Knowing(Engine):
    """Replies with what it knows of the way in which a question is asked; an error is raised."""

    knows: dict[str, str | VoxError]
    name: str = "fake"
    model: str = "fake"
    asked: int = 0

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> Reply:
        assert session.instructions == "Be short."
        assert session.turns == ()
        self.asked += 1
        known = self.knows["speech" if utterance.clip else "text"]
        if isinstance(known, VoxError):
            raise known
        yield known
        return PassReport(1, 100, 10, 5)

    def close(self) -> None:
        """Do nothing."""


def question(name: str = "a", text: str = "Which city?") -> SpokenQuestion:
    return SpokenQuestion(name, "cities", text, ("paris",), "words", lambda: read_audio(FRANCE))


def run(
    engine: Knowing, out: Path, questions: Sequence[SpokenQuestion], setup: dict[str, Any] | None = None
) -> list[Asked]:
    with Results(out, resume=True, count=lambda _record: None) as results:
        return list(ask_all(questions, engine, setup or SETUP, ("speech", "text"), results))


def measured(found: Sequence[Figure], what: str) -> Figure:
    return next(figure for figure in found if figure.what.startswith(what))


def test_what_is_lost_by_speech_shows(tmp_path: Path) -> None:
    engine = Knowing({"speech": "It is Perris.", "text": "It is Paris."})
    asked = run(engine, tmp_path / "a.jsonl", [question(str(number)) for number in range(6)])
    found = figures(asked, "0.5 to 0.7")
    assert measured(found, "speech: right").values["right"] == 0
    assert measured(found, "text: right").measured.startswith("6 of 6, 100.0% (61.0% to 100.0%)")
    lost = measured(found, LOST_BY_SPEECH).values
    assert (lost["only_text"], lost["only_speech"], lost["lost_points"]) == (6, 0, 100)
    assert lost["p"] == pytest.approx(2 / 64)
    assert measured(found, "speech: tokens").values == {"prompt": 600, "cached": 60, "reply": 30, "questions": 6}
    assert measured(found, "text: latency").load == "0.5 to 0.7"


def test_a_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    out, questions = tmp_path / "a.jsonl", [question("a"), question("b")]
    broken = Knowing({"speech": "Paris.", "text": ModelError("out of memory")})
    with pytest.raises(ModelError):
        run(broken, out, questions)
    assert broken.asked == 2
    whole = Knowing({"speech": "Paris.", "text": "Paris."})
    asked = run(whole, out, questions)
    assert whole.asked == 3
    assert [(each.way, each.question.id, each.is_right) for each in asked] == [
        ("speech", "a", True),
        ("text", "a", True),
        ("speech", "b", True),
        ("text", "b", True),
    ]
    again = run(Knowing({}), out, questions)
    assert [each.record["timings"] for each in again] == [each.record["timings"] for each in asked]


def test_a_run_with_other_settings_does_not_go_on(tmp_path: Path) -> None:
    engine = Knowing({"speech": "Paris.", "text": "Paris."})
    run(engine, tmp_path / "a.jsonl", [question()])
    with pytest.raises(ConfigError, match="other settings"):
        run(engine, tmp_path / "a.jsonl", [question()], SETUP | {"model": "other"})


def test_a_recording_that_can_not_be_read_is_counted_as_failed(tmp_path: Path) -> None:
    def broken() -> AudioClip:
        raise AudioInputError("cut off")

    bad = SpokenQuestion("bad", "cities", "Which city?", ("paris",), "words", broken)
    asked = run(Knowing({"speech": "Paris.", "text": "Paris."}), tmp_path / "a.jsonl", [bad, question()])
    values = measured(figures(asked), "speech: right").values
    assert (values["right"], values["questions"], values["failed"]) == (1, 2, 1)


def test_a_question_without_text_is_asked_aloud_alone(tmp_path: Path) -> None:
    asked = run(Knowing({"speech": "Paris."}), tmp_path / "a.jsonl", [question(text="")])
    assert [each.way for each in asked] == ["speech"]
    assert not any(figure.what == LOST_BY_SPEECH for figure in figures(asked))


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    pytest.importorskip("openai")
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with OpenAIServer() as server:
        yield server


def command(server: OpenAIServer, *arguments: str | Path) -> Any:
    flags = ["--engine", "remote", "--url", server.url, *map(str, arguments)]
    return CliRunner().invoke(answers.app, flags)


def test_the_command_measures_and_goes_on(server: OpenAIServer, tmp_path: Path) -> None:
    folder = big_bench_audio(tmp_path / "set", *(BBA | {"id": number, "transcript": "Is it?"} for number in range(4)))

    def answer(exchange: Exchange) -> None:
        is_text = isinstance(exchange.request.body["messages"][-1]["content"], str)
        says("The answer is", " yes." if is_text else " no.")(exchange)

    server.always = answer
    out, figures_file = tmp_path / "replies.jsonl", tmp_path / "figures.json"
    done = command(server, folder, "--out", out, "--json", figures_file, "--limit", "3", "--instructions", "Be short.")
    assert done.exit_code == 0, done.output
    assert "| text: right answers | 3 of 3, 100.0%" in done.stdout
    values = {each["what"]: each["values"] for each in json.loads(figures_file.read_text())["figures"]}
    assert values[LOST_BY_SPEECH]["only_text"] == 3
    assert len(server.chats) == 6
    assert all(request.body["temperature"] == 0 for request in server.chats)
    assert "already has results" in command(server, folder, "--out", out).output
    more = command(server, folder, "--out", out, "--resume", "--instructions", "Be short.")
    assert "| text: right answers | 4 of 4, 100.0%" in more.stdout
    assert len(server.chats) == 8


def test_a_question_that_the_server_refuses_is_counted_as_failed(server: OpenAIServer, tmp_path: Path) -> None:
    folder = big_bench_audio(tmp_path / "set", BBA, BBA | {"id": 1})
    server.queue(refuses(413), says("Yes."))
    done = command(server, folder, "--way", "speech")
    assert "1 of 2, 50.0%" in done.stdout
    assert "1 failed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--way", "song"], "no way song"), (["--category", "none"], "no question is of that category")],
)
def test_wrong_flags_are_one_line(server: OpenAIServer, arguments: list[str], message: str) -> None:
    done = command(server, *arguments)
    assert done.exit_code != 0
    assert message in done.output
    assert "Traceback" not in done.output


class HummingVoice:
    """Says a tone for each sentence, and counts them."""

    def __init__(self) -> None:
        self.said = 0

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        self.said += 1
        yield AudioClip(np.sin(np.arange(SAMPLE_RATE) * 0.2).astype(np.float32) * np.float32(0.3))


def test_a_voice_says_each_question_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voice = HummingVoice()
    monkeypatch.setattr(answers, "open_synthesizer", lambda *_arguments, **_options: nullcontext(voice))
    with ExitStack() as stack:
        speaker = answers.CachedVoice("any", tmp_path / "kept", stack)
        first, second = speaker.say("Is it so?"), speaker.say("Is it so?")
        speaker.say("Is it not?")
    assert voice.said == 2
    assert first.seconds == second.seconds == pytest.approx(1)
