"""`python -m benchmarks.end_of_turn`: its data, its arithmetic, and what it prints, on signals in place of voices."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import end_of_turn
from benchmarks.turns import detection, pocketsphinx
from benchmarks.turns.detection import Observed, Pause, Policy, Rate, TurnFrames
from benchmarks.turns.recordings import LabelledTurn, Span, read_turns
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples, read_audio
from voxcli.audio.vad import FRAME_SAMPLES
from voxcli.audio.wav import encode_wav
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.errors import AudioInputError

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
QUESTION = Path(__file__).parent.parent.parent / "examples/questions/capital-of-france.flac"


def tone(seconds: float) -> Samples:
    samples: Samples = (0.3 * np.sin(np.arange(round(seconds * SAMPLE_RATE)) * 0.2)).astype(np.float32)
    return samples


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def scripted(*lengths: int) -> TurnFrames:
    """Return a turn of voice and silence by turns, in frames; the last silence is its end."""
    voiced = [number % 2 == 0 for number, length in enumerate(lengths) for _ in range(length)]
    frames = np.where(np.array(voiced)[:, np.newaxis], 0.5, 0.0).astype(np.float32) * np.ones(FRAME_SAMPLES, np.float32)
    edges = np.concatenate([[0], np.cumsum(lengths)]) * FRAME_SECONDS
    spans = [Span(float(edges[n]), float(edges[n + 1])) for n in range(1, len(lengths), 2)]
    turn = LabelledTurn("turn", AudioClip(frames.reshape(-1)), tuple(spans[:-1]), spans[-1])
    return TurnFrames(turn, frames, [float(each) for each in voiced])


TURNS = [scripted(20, 10, 20, 200), scripted(30, 25, 15, 40, 20, 200), scripted(25, 200)]


# What is measured.


@pytest.mark.parametrize("silence_ms", [200, 300, 600, 800, 1000, 1500])
def test_policies_of_silence_do_what_endpointing_does(silence_ms: int) -> None:
    settings = EndpointingSettings(min_silence_ms=silence_ms, speculative_replies=False)
    played = detection.run(TURNS, lambda: Endpointer(settings))
    observed = [detection.observe(turn, None) for turn in TURNS]
    assert detection.rate(observed, Policy(math.inf, silence_ms, silence_ms)) == played
    assert (played.pauses, len(played.delays_ms)) == (3, 3)


@pytest.mark.parametrize("complete", [0.2, 0.8])
def test_policies_of_the_model_do_what_endpointing_does(complete: float) -> None:
    settings = EndpointingSettings()
    played = detection.run(TURNS, lambda: Endpointer(settings), lambda _: complete > 0.5)
    observed = [detection.observe(turn, lambda _: complete) for turn in TURNS]
    policy = Policy(0.5, settings.complete_silence_ms, settings.max_silence_ms)
    assert detection.rate(observed, policy) == played
    assert played.cut == (3 if complete > 0.5 else 1)


def test_a_turn_that_is_cut_off_is_counted_once_for_each_pause() -> None:
    found = detection.run([scripted(20, 30, 20, 200)], lambda: Endpointer(EndpointingSettings(min_silence_ms=300)))
    assert (found.cut, found.pauses, found.elsewhere) == (1, 1, 0)
    assert found.delays_ms == pytest.approx([320])
    assert found.share == 1


def test_an_end_where_no_pause_is_labelled_is_counted_apart() -> None:
    turn = scripted(20, 30, 20, 200)
    unlabelled = TurnFrames(LabelledTurn("turn", turn.turn.clip, (), turn.turn.end), turn.frames, turn.speech)
    found = detection.run([unlabelled], lambda: Endpointer(EndpointingSettings(min_silence_ms=300)))
    assert (found.cut, found.pauses, found.elsewhere) == (0, 0, 1)


def test_the_time_that_the_model_takes_delays_the_end() -> None:
    settings = EndpointingSettings(speculate_after_ms=200, min_silence_ms=600)
    turn = [scripted(20, 200)]
    at_once, later = (
        detection.run(turn, lambda: Endpointer(settings), lambda _: True, verdict_ms) for verdict_ms in (0.0, 200.0)
    )
    assert later.mean_delay_ms - at_once.mean_delay_ms == pytest.approx(192)


def test_a_verdict_that_comes_after_the_pause_changes_nothing() -> None:
    turn, settings = [scripted(20, 10, 20, 200)], EndpointingSettings(speculate_after_ms=200)
    found = detection.run(turn, lambda: Endpointer(settings), lambda _: True, verdict_ms=150)
    assert found.cut == 0


def observed(*pauses: tuple[float, float]) -> Observed:
    """Return a turn with pauses of these lengths in milliseconds and probabilities; the last is its end."""
    spans = [Span(10.0 * number, 10.0 * number + ms / 1000) for number, (ms, _) in enumerate(pauses, 1)]
    turn = LabelledTurn("turn", AudioClip(silence(1)), tuple(spans[:-1]), spans[-1])
    lengths = [ms for ms, _ in pauses[:-1]] + [math.inf]
    each = zip(spans, lengths, pauses, strict=True)
    return Observed(turn, tuple(Pause(span.start, ms, complete) for span, ms, (_, complete) in each))


def test_the_best_policies_keep_to_their_budgets() -> None:
    turns = [observed((500, 0.1), (900, 0.2), (1000, 0.9)), observed((700, 0.3), (1000, 0.6))]
    alone, model = (detection.sweep(turns, model=model) for model in (False, True))
    fast = detection.fewest_cuts(model, 300)
    assert fast
    assert fast[1].share == 0
    assert fast[1].mean_delay_ms <= 300
    slow = detection.fewest_cuts(alone, 300)
    assert slow
    assert slow[1].share == 1
    patient = detection.shortest_delay(alone, 0.05)
    assert patient
    assert 900 < patient[1].mean_delay_ms < 1000
    assert detection.fewest_cuts(alone, 100) is None


def test_no_policy_ends_a_turn_before_the_model_has_answered() -> None:
    swept = detection.sweep([observed((1000, 0.9))], model=True, verdict_ms=400)
    soonest_ms = EndpointingSettings().speculate_after_ms + 400
    assert min(found.mean_delay_ms for _, found in swept) >= soonest_ms


# The recordings.


def row(name: str, *spans: tuple[float, float], language: str = "en", **more: object) -> dict[str, object]:
    silences = [{"start": start, "end": end} for start, end in spans]
    return {"id": name, "language": language, "silence_spans": silences, **more}


def write_rows(folder: Path, *rows: dict[str, object]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def test_a_folder_with_metadata_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode_wav(AudioClip(tone(1))))
    rows = [
        row("a", (0.2, 0.4), (0.8, 1.0), file_name="a.wav"),
        row("b", (0.8, 1.0), language="de", file_name="a.wav"),
        row("c", (0.8, 1.0), file_name="a.wav"),
    ]
    write_rows(tmp_path, *rows)
    first, _ = read_turns(tmp_path, "en", None)
    assert (first.id, first.pauses, first.end) == ("a", (Span(0.2, 0.4),), Span(0.8, 1.0))
    assert first.clip.seconds == pytest.approx(1)
    assert [turn.id for turn in read_turns(tmp_path, None, 2)] == ["a", "b"]


def test_parquet_files_of_the_hub_are_read(tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    audio = {"bytes": encode_wav(AudioClip(tone(1))), "path": None}
    rows = [row("a", (0.8, 1.0), audio=audio, messages=[{"role": "assistant", "content": "Hello"}])]
    (tmp_path / "data" / "en").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data/en/validation-00000-of-00001.parquet")
    (turn,) = read_turns(tmp_path, "en", None)
    assert (turn.id, turn.pauses, turn.end) == ("a", (), Span(0.8, 1.0))
    assert turn.clip.seconds == pytest.approx(1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "no labelled turns"),
        ("{", "line 1"),
        ("{}", "line 1"),
        ("3", "line 1"),
        ('{"file_name": "a.wav", "id": "a"}', "the turn a has no list silence_spans"),
        ('{"file_name": "a.wav", "id": "a", "silence_spans": []}', "the turn a has no list silence_spans"),
        ('{"file_name": "a.wav", "id": "a", "silence_spans": [{"start": 0, "end": 1}]}', "does not exist"),
    ],
)
def test_what_cannot_be_read_is_named(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(line + "\n" if line else "")
    with pytest.raises(AudioInputError, match=says):
        read_turns(tmp_path, None, None)


def test_silences_are_labelled_and_lengthened_and_the_voice_is_not_changed() -> None:
    words = [tone(0.5), tone(0.4), tone(0.3)]
    recording = np.concatenate([silence(0.3), words[0], silence(0.2), words[1], silence(0.2), words[2], silence(0.1)])
    longer, spans = pocketsphinx.labelled(recording, np.random.default_rng(1))
    *pauses, end = spans
    assert len(pauses) == 2
    for start, stop in pauses:
        assert 0.34 < (stop - start) / SAMPLE_RATE < 0.91
        assert np.abs(longer[start + 800 : stop - 800]).max() == 0
    assert end[1] == len(longer)
    assert np.array_equal(longer[np.abs(longer) > 0], recording[np.abs(recording) > 0])
    kept, spans = pocketsphinx.labelled(recording, None)
    assert np.array_equal(kept[: len(recording)], recording)
    assert spans[0][0] / SAMPLE_RATE == pytest.approx(0.8, abs=0.05)


def test_the_release_of_a_consonant_is_no_word() -> None:
    recording = np.concatenate([silence(0.3), tone(0.5), silence(0.2), tone(0.1), silence(0.3)])
    _, spans = pocketsphinx.labelled(recording, np.random.default_rng(1))
    assert len(spans) == 1
    assert spans[0][0] / SAMPLE_RATE == pytest.approx(1.1, abs=0.05)


# The command.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one turn: a question, a pause of 0.7 s, and the question again."""
    question = read_audio(QUESTION).samples
    loud = np.flatnonzero(np.abs(question) > 0.02)
    question = question[loud[0] : loud[-1]]
    seconds = len(question) / SAMPLE_RATE
    samples = np.concatenate([question, silence(0.7), question, silence(0.5)])
    (tmp_path / "a.wav").write_bytes(encode_wav(AudioClip(samples)))
    write_rows(tmp_path, row("a", (seconds, seconds + 0.7), (2 * seconds + 0.7, 2 * seconds + 1.2), file_name="a.wav"))
    return tmp_path


def test_settings_and_operating_points_are_printed_and_written(folder: Path, tmp_path: Path) -> None:
    arguments = ["--setting", "silence:300", "--setting", "silence:900", "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(end_of_turn.app, [str(folder), *arguments])
    assert result.exit_code == 0, result.output
    figures = {each["what"]: each for each in json.loads((tmp_path / "figures.json").read_text())["figures"]}
    assert (figures["silence:300"]["values"]["cut"], figures["silence:900"]["values"]["cut"]) == (1, 0)
    assert "100.0% false cut-offs (1 of 1 pauses)" in result.output
    assert figures["silence alone, best policy: mean delay at 5% false cut-offs"]["values"]["cut"] == 0


def test_the_adaptive_silence_follows_the_pauses_of_the_turns_before(folder: Path, tmp_path: Path) -> None:
    turn = json.loads((folder / "metadata.jsonl").read_text())
    write_rows(folder, *({**turn, "id": str(number)} for number in range(6)))
    arguments = ["--setting", "adaptive", "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(end_of_turn.app, [str(folder), *arguments])
    assert result.exit_code == 0, result.output
    figures = {each["what"]: each for each in json.loads((tmp_path / "figures.json").read_text())["figures"]}
    values = figures["adaptive"]["values"]
    assert 0 < values["cut"] < values["pauses"] == 6
    assert 600 < values["silence_ms"] < 900
    assert values["delays_ms"][0] < values["delays_ms"][-1]


def test_the_model_is_asked_once_for_each_clip() -> None:
    model = end_of_turn.TimedModel(lambda _: 0.7)
    clips = [AudioClip(tone(1)), AudioClip(tone(2)), AudioClip(tone(1))]
    assert [model.is_complete(clip) for clip in clips] == [True] * 3
    assert len(model.seconds) == 2


@pytest.mark.parametrize("setting", ["silence", "silence:", "silence:5", "silence:9999", "silence:1.5", "loudness:3"])
def test_an_unknown_setting_is_refused(setting: str, folder: Path) -> None:
    result = CliRunner().invoke(end_of_turn.app, [str(folder), "--setting", setting])
    assert result.exit_code == 2
    assert "there is no setting" in result.stderr


def test_a_rate_without_pauses_or_turns_is_no_error() -> None:
    empty = Rate(0, 0, 0, ())
    assert (empty.share, empty.mean_delay_ms) == (0, math.inf)
