"""Tests of delay, echo and noise measurements in a synthetic room."""

import numpy as np
import pytest

from tests.support.room import SECOND, echo, level, spoken
from voxcli.audio.clip import AudioClip, Samples
from voxcli.audio.levels import SILENCE_DBFS
from voxcli.chat.devices.echo_path import (
    EARLIEST_SAMPLES,
    LATEST_SAMPLES,
    RECORD_SECONDS,
    Advice,
    DelayEstimate,
    Loopback,
    chirp,
    estimate_delay,
    measure_loopback,
    peak_correlation,
)

WINDOW = 4 * SECOND


@pytest.fixture(scope="module")
def played() -> Samples:
    names = ("capital-of-poland", "day-after-friday", "one-plus-one", "opposite-of-black", "what-caterpillars-become")
    return spoken(*names)


@pytest.fixture(scope="module")
def person() -> Samples:
    return spoken("three-friends-on-a-train")[SECOND:][:WINDOW]


def estimate(played: Samples, captured: Samples, start: int = 2 * SECOND) -> DelayEstimate:
    window = played[start - LATEST_SAMPLES : start + WINDOW + EARLIEST_SAMPLES]
    return estimate_delay(window, captured[start : start + WINDOW])


@pytest.mark.parametrize("delay_ms", [0, 20, 60, 110, 180, 250, 600, 990])
@pytest.mark.parametrize("level_db", [-40, -20, 0])
def test_delay(played: Samples, delay_ms: int, level_db: int) -> None:
    found = estimate(played, echo(played, delay_ms=delay_ms, level_db=level_db, seed=delay_ms))
    assert found.is_reliable
    assert found.delay_ms == pytest.approx(delay_ms, abs=5)


def test_a_reflection_that_is_louder_than_the_direct_sound(played: Samples) -> None:
    direct, reflection = (echo(played, delay_ms=delay_ms) for delay_ms in (70, 90))
    assert estimate(played, 0.9 * direct + reflection).delay_ms == pytest.approx(70, abs=5)


def test_delay_while_somebody_talks(played: Samples, person: Samples) -> None:
    captured = echo(played, delay_ms=90, level_db=-3)
    captured[2 * SECOND :][:WINDOW] += person
    found = estimate(played, captured)
    assert found.is_reliable
    assert found.delay_ms == pytest.approx(90, abs=5)


@pytest.mark.parametrize("talking", [False, True])
def test_no_echo_is_not_reliable(played: Samples, person: Samples, talking: bool) -> None:
    captured = echo(played, delay_ms=90, level_db=-200)
    captured[2 * SECOND :][:WINDOW] += person * talking
    assert not estimate(played, captured).is_reliable


def test_silence_is_not_reliable(played: Samples) -> None:
    silence = np.zeros_like(played)
    for far, near in ((silence, played), (played, silence), (silence, silence)):
        assert not estimate(far, near).is_reliable


def test_the_correlation_of_one_copy_is_one(played: Samples) -> None:
    around = played[: LATEST_SAMPLES + SECOND + EARLIEST_SAMPLES]
    assert peak_correlation(around, around[3000 : 3000 + SECOND]) == pytest.approx(1, abs=0.02)
    assert peak_correlation(around, -0.01 * around[3000 : 3000 + SECOND]) == pytest.approx(1, abs=0.02)


def test_speech_that_ends_before_the_playback_is_no_echo() -> None:
    question = spoken("our-galaxy")
    noise = AudioClip(np.random.default_rng(0).uniform(-0.17, 0.17, 88_200).astype(np.float32), 44_100)
    reply = noise.resampled(SECOND).samples
    for end in range(SECOND, WINDOW, SECOND // 20):
        captured = np.zeros(WINDOW, np.float32)
        said = question[-end:]
        captured[end - len(said) : end] = said
        played = np.zeros(LATEST_SAMPLES + WINDOW + EARLIEST_SAMPLES, np.float32)
        replied = played[LATEST_SAMPLES + end + SECOND * 4 // 10 :]
        replied[: len(reply)] = reply[: len(replied)]
        assert not estimate_delay(played, captured).is_reliable


def test_two_hums_of_one_pitch_do_not_correlate() -> None:
    rng = np.random.default_rng(0)
    seconds = np.arange(LATEST_SAMPLES + SECOND + EARLIEST_SAMPLES) / SECOND
    hum = 0.1 * np.sin(2 * np.pi * 120 * seconds)
    one, other = (hum + rng.normal(0, 0.01, len(hum)) for _ in range(2))
    assert peak_correlation(one.astype(np.float32), other[:SECOND].astype(np.float32)) < 0.1


def test_lengths_that_do_not_fit_are_refused(played: Samples) -> None:
    with pytest.raises(ValueError, match="has to cover"):
        estimate_delay(played[:SECOND], played[:SECOND])
    with pytest.raises(ValueError, match="has to cover"):
        peak_correlation(played[:SECOND], played[:SECOND])


def recording(*, delay_ms: int, echo_db: float, noise_dbfs: float, seed: int = 0) -> Samples:
    silent = np.zeros(round(RECORD_SECONDS * SECOND), np.float32)
    sound = silent.copy()
    sound[: len(chirp().samples)] = chirp().samples
    captured = echo(sound, delay_ms=delay_ms, level_db=0) - echo(silent, delay_ms=0)  # The equal noise cancels.
    captured *= 10 ** (echo_db / 20) * np.linalg.norm(sound) / np.linalg.norm(captured)
    noise = np.random.default_rng(seed).normal(0, 10 ** (noise_dbfs / 20), len(captured))
    return (captured + noise).astype(np.float32)


@pytest.mark.parametrize("delay_ms", [0, 30, 180, 950])
@pytest.mark.parametrize(("echo_db", "noise_dbfs"), [(-20, -60), (-45, -60), (3, -80), (-15, -30), (-30, -35)])
def test_chirp(delay_ms: int, echo_db: float, noise_dbfs: float) -> None:
    found = measure_loopback(recording(delay_ms=delay_ms, echo_db=echo_db, noise_dbfs=noise_dbfs))
    assert found.delay_ms == pytest.approx(delay_ms, abs=2)
    assert found.echo_db == pytest.approx(echo_db, abs=2)
    assert found.noise_dbfs == pytest.approx(noise_dbfs, abs=2)


@pytest.mark.parametrize("seed", range(6))
def test_an_echo_below_the_noise_is_not_underrated(seed: int) -> None:
    found = measure_loopback(recording(delay_ms=100, echo_db=-36, noise_dbfs=-30, seed=seed))
    assert found.delay_ms == pytest.approx(100, abs=2)
    assert found.echo_db == pytest.approx(-36, abs=6)


@pytest.mark.parametrize("seed", range(5))
def test_no_chirp_in_noise(seed: int) -> None:
    found = measure_loopback(recording(delay_ms=50, echo_db=-200, noise_dbfs=-50, seed=seed))
    assert found.delay_ms is None
    assert found.echo_db is None
    assert found.noise_dbfs == pytest.approx(-50, abs=1)


def test_a_muted_microphone() -> None:
    silent = np.zeros(round(RECORD_SECONDS * SECOND), np.float32)
    assert measure_loopback(silent) == Loopback(None, None, SILENCE_DBFS, is_zero=True)


def test_a_door_slams() -> None:
    captured = recording(delay_ms=50, echo_db=-20, noise_dbfs=-60)
    captured[2 * SECOND : 2 * SECOND + 800] += 0.5
    found = measure_loopback(captured)
    assert found.delay_ms == pytest.approx(50, abs=2)
    assert found.noise_dbfs == pytest.approx(-60, abs=2)


def test_a_recording_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="seconds"):
        measure_loopback(np.zeros(SECOND, np.float32))


def test_the_chirp_is_gentle() -> None:
    samples = chirp().samples
    assert np.abs(samples).max() <= 0.5
    assert np.abs(samples[[0, -1]]).max() < 0.001
    assert level(samples) > -15


@pytest.mark.parametrize(
    ("echo_db", "noise_dbfs", "canceller", "advice"),
    [
        (-20, -60, True, "full-duplex"),
        (-20, -60, False, "half-duplex"),
        (-3, -60, True, "half-duplex"),
        (None, -60, False, "full-duplex"),
        (-20, -25, True, "push-to-talk"),
        (None, -25, True, "push-to-talk"),
    ],
)
def test_advice(echo_db: float | None, noise_dbfs: float, canceller: bool, advice: Advice) -> None:
    delay_ms = None if echo_db is None else 50.0
    assert Loopback(delay_ms, echo_db, noise_dbfs).advice(canceller=canceller) == advice
