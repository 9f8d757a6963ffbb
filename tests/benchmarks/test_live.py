"""`python -m benchmarks.live`: measures on recordings, and a short real run on a virtual sound card."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.conversation.chat_process import processor_seconds
from benchmarks.conversation.fixed_reply import FIXED_REPLY
from benchmarks.conversation.harness import noise
from benchmarks.conversation.pipeline import NOISE_MS, bursts
from benchmarks.conversation.recordings import continuity, parts_kept, silent_after, stretches, voiced_span
from benchmarks.conversation.scenarios import is_right, stages_of
from benchmarks.conversation.sound_card import PROGRAMS, RATE
from benchmarks.conversation.turn_taking import with_pause
from benchmarks.live import app
from benchmarks.report import Figure, machine, markdown, percentile
from tests.support.room import spoken
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.chat.speech.echo import high_pass_response
from voxcli.chat.speech.silence import LOWEST_MS

MS = RATE // 1000
GAP = 20 * MS


def steady(ms: int, *, seed: int = 0) -> Samples:
    return noise(1, seed=seed)[: ms * MS]


def silence(ms: int) -> Samples:
    return np.zeros(ms * MS, np.float32)


def ducked(reply: Samples, *cuts: int, ms: int = 300, fade: int = 480) -> Samples:
    """Return a reply as played that fades out before each cut, is silent, and fades in from there."""
    pieces, last = [], 0
    for cut in (*cuts, len(reply)):
        piece = reply[last:cut].copy()
        if last:
            piece[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
        if cut < len(reply):
            piece[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        pieces += [piece, silence(ms)]
        last = cut
    return np.concatenate(pieces)


# When voice begins and ends.


def test_voice_is_found_to_the_sample_between_fainter_sounds() -> None:
    faint = steady(100, seed=1) / 100
    assert voiced_span(np.concatenate((silence(10), faint, steady(200), faint))) == (110 * MS, 310 * MS - 1)


@pytest.mark.parametrize("samples", [silence(0), silence(100), noise(0.1) / 1000])
def test_silence_has_no_voice(samples: Samples) -> None:
    assert voiced_span(samples) is None


def test_a_steady_sound_is_ducked_before_its_last_sample() -> None:
    fade = np.linspace(1, 0, 10 * MS, dtype=np.float32)
    sound = steady(210)
    sound[200 * MS :] *= fade
    fell, last = silent_after(np.concatenate((sound, silence(100))), RATE)
    assert fell is not None
    assert 200 * MS < fell <= last < 210 * MS


def test_a_sound_that_goes_on_is_not_ducked() -> None:
    sound = noise(0.3)
    assert silent_after(sound, RATE)[0] is None


def test_short_silence_belongs_to_a_stretch() -> None:
    sound = np.full(100, 0.5, np.float32)
    gap, pause = np.zeros(50, np.float32), np.zeros(200, np.float32)
    assert stretches(np.concatenate((pause, sound, gap, sound, pause, sound)), 100) == [(200, 450), (650, 750)]
    assert stretches(pause, 100) == []


# The played part of a reply.


def test_a_reply_that_was_heard_at_once_is_whole() -> None:
    found = continuity(noise(1), np.concatenate((silence(50), noise(1), silence(50))), GAP)
    assert (found.pieces, found.missing_samples, found.repeated_samples, found.foreign) == (1, 0, 0, 0)


def test_a_reply_that_fell_silent_and_went_on_is_whole() -> None:
    reply = noise(1)
    found = continuity(reply, ducked(reply, 20_000, 33_333), GAP)
    assert (found.pieces, found.missing_samples, found.repeated_samples, found.foreign) == (3, 0, 0, 0)


@pytest.mark.parametrize("lost", [480, 4800])
def test_samples_that_were_skipped_are_missed(lost: int) -> None:
    reply = noise(1)
    transcript = np.concatenate((reply[:20_000], silence(300), reply[20_000 + lost :]))
    found = continuity(reply, transcript, GAP)
    assert lost - 6 <= found.missing_samples <= lost
    assert (found.repeated_samples, found.foreign) == (0, 0)


def test_samples_that_were_played_twice_are_noticed() -> None:
    reply = noise(1)
    transcript = np.concatenate((reply[:20_000], silence(300), reply[19_000:]))
    assert continuity(reply, transcript, GAP).repeated_samples == 1000


def test_the_end_of_a_reply_is_missed() -> None:
    reply = noise(1)
    assert continuity(reply, reply[:40_000], GAP).missing_samples == pytest.approx(4_100, abs=6)


def test_a_sound_that_is_not_the_reply_is_foreign() -> None:
    reply = noise(1)
    assert continuity(reply, np.concatenate((reply, silence(100), noise(0.2, seed=9))), GAP).foreign == 1


# What was kept of an utterance.


def test_an_utterance_that_was_kept_with_more_around_it_is_whole() -> None:
    said = spoken("capital-of-france")
    room = np.random.default_rng(0).normal(0, 1e-3, 8000).astype(np.float32)
    assert all(parts_kept(said, np.concatenate((room, said * 0.7, room))))


def test_a_first_word_that_was_lost_is_noticed() -> None:
    said = spoken("capital-of-france")
    start, _ = voiced_span(said) or (0, 0)
    found = parts_kept(said, said[start + SAMPLE_RATE // 5 :])
    assert not found[0]
    assert all(found[2:])


def test_what_was_cut_out_of_an_utterance_is_noticed() -> None:
    said = spoken("capital-of-france")
    middle = len(said) // 2
    found = parts_kept(said, np.concatenate((said[:middle], said[middle + 3200 :])))
    assert not all(found)


def test_what_turns_the_phases_of_low_tones_keeps_everything() -> None:
    """The canceller's high-pass filter moves the best correlation by milliseconds."""
    said = with_pause(AudioClip(spoken("capital-of-greece")), AudioClip(spoken("capital-of-france")), 750).samples
    assert all(parts_kept(said, np.convolve(said, high_pass_response()).astype(np.float32)))


def test_silence_keeps_nothing() -> None:
    assert not any(parts_kept(spoken("one-plus-one"), np.zeros(SAMPLE_RATE * 3, np.float32)))


def test_a_pause_lies_between_the_voices() -> None:
    first, second = AudioClip(spoken("one-plus-one")), AudioClip(spoken("our-galaxy"))
    joined = with_pause(first, second, 350)
    start, last = voiced_span(first.samples) or (0, 0)
    voice = last + 1 - start
    assert not joined.samples[voice : voice + 350 * 16].any()
    assert joined.samples[voice - 1]
    assert joined.samples[voice + 350 * 16]


def test_noises_are_short_and_apart() -> None:
    found = stretches(bursts(AudioClip(spoken("telephone")), 6, seed=3).samples, RATE // 2)
    assert len(found) == 6
    assert all(NOISE_MS * MS * 0.6 < stop - start <= NOISE_MS * (MS + 1) for start, stop in found)


# Figures.


def test_the_stages_add_up() -> None:
    used = {"endpoint_ms": 640.0, "first_token_ms": 500.0, "first_audio_ms": 641.0, "speculative_reply": "used"}
    late = {"endpoint_ms": 640.0, "first_token_ms": 900.0, "first_audio_ms": 950.0, "speculative_reply": "none"}
    assert stages_of(used, 800.0) == {"end-point": 640, "engine": 0, "synthesis": 1, "devices": 159}
    assert stages_of(late, 1100.0) == {"end-point": 640, "engine": 260, "synthesis": 50, "devices": 150}


@pytest.mark.parametrize(("reply", "right"), [("It is Rome.", True), ("Chrome!", False), ("", False)])
def test_an_answer_is_right_as_a_whole_word(reply: str, right: bool) -> None:
    assert is_right(reply, ["rome"]) is right


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([5, 1, 4, 2, 3], 0.95) == 5
    assert percentile(range(1, 101), 0.95) == 95


def test_a_table_names_figure_bar_and_machine() -> None:
    table = markdown([Figure("a | b", "1 ms", "at most 2 ms", True, load="0.1 to 0.2")], machine())
    assert "| a \\| b | 1 ms | at most 2 ms | yes | 0.1 to 0.2 |" in table
    assert "cores" in table
    assert "voxcli" in table


# The command.


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*arguments])
    return done.exit_code, done.stdout, done.stderr


def test_an_unknown_scenario_names_the_known_ones() -> None:
    code, _, said = run("--scenario", "singing")
    assert code == 2
    assert "barge-in" in said


@pytest.mark.parametrize("answers", ["[]", '{"a.wav": 3}', "{"])
def test_answers_that_are_none_are_refused(tmp_path: Path, answers: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(answers, encoding="utf-8")
    code, _, said = run("--answers", str(path), "--questions", "examples/questions/our-galaxy.flac")
    assert code == 2
    assert "can't be used" in said


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    code, _, said = run("--questions", str(tmp_path))
    assert code == 3
    assert "no questions" in said


def test_a_missing_program_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, said = run("--questions", "examples/questions/our-galaxy.flac", "--scenario", "pipeline")
    assert code == 5
    assert "Linux" in said or "apt-get install" in said


@pytest.mark.skipif(
    sys.platform != "linux" or any(shutil.which(program) is None for program in PROGRAMS),
    reason="needs PulseAudio, and Linux",
)
def test_a_real_question_is_answered_and_timed(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    code, table, notes = run(
        *("--questions", "examples/questions/one-plus-one.flac"),
        *("--scenario", "pipeline", "--turns", "2", "--engine", FIXED_REPLY, "--json", str(path)),
    )
    assert code == 0, notes
    assert "what the pipeline adds" in table
    trip, added = json.loads(path.read_text())["figures"]
    assert 0 < trip["values"]["all_ms"][0] < 5000
    whole = added["values"]["voice_to_voice"]["all_ms"]
    assert len(whole) == 2
    assert all(took > LOWEST_MS for took in whole)  # The silence that ends a turn is in it.


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_the_processor_time_of_a_process_includes_its_children() -> None:
    work = "import time, sys\nwhile time.process_time() < 0.2: pass\n"
    work += "print(time.process_time(), flush=True)\nsys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        used_by_child = float(process.stdout.readline())
        assert processor_seconds(process.pid) > used_by_child - 0.02  # Two ticks of the kernel's clock.
        process.communicate()
