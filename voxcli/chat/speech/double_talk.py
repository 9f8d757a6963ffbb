"""Tells a person who speaks over the playback from its echo, while nothing is known of the echo's path.

All functions are pure. They take samples at `audio.SAMPLE_RATE` in the shapes of `estimate_delay`: the microphone's
signal since the playback began, LEAST_SAMPLES to MOST_SAMPLES long, and the playback from LATEST_SAMPLES before that.
"""

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.levels import power
from voxcli.chat.devices.echo_path import EARLIEST_SAMPLES, LATEST_SAMPLES, peak_correlation, resembles_playback

LEAST_SAMPLES = SAMPLE_RATE // 2  # Shorter stretches resemble any playback.
MOST_SAMPLES = 3 * SAMPLE_RATE
LOUD_SAMPLES = SAMPLE_RATE // 5  # A syllable; LATEST_SAMPLES is a multiple of it.
LOUD_POWER = 10**-4.5  # -45 dBFS
# -12 dB. An echo is rarely louder, relative to the playback (`echo_path.FULL_DUPLEX_ECHO_DB`).
LOUD_SHARE = 10**-1.2
# In 480 first replies with an echo of -10 to +6 dB after 20 to 800 ms, in rooms that take 40 to 400 ms to decay, the
# least peak correlation was 0.35.
LEAST_OWN_CORRELATION = 0.25


def is_person(played: Samples, microphone: Samples) -> bool:
    """Tell whether speech that has passed the canceller and its detector is a person's.

    A person over recorded speech, without an echo, correlated 0.13 in the median and at most 0.35 in 24 of 26 cases;
    echoes that had passed 0.46 to 0.83 (23 rooms, 20 to 950 ms, +6 to -30 dB).
    """
    return not resembles_playback(played, microphone)


def is_loud_person(played: Samples, microphone: Samples) -> bool:
    """Tell whether the last LOUD_SAMPLES are a person's, though no detector has found speech in them."""
    loudness = power(microphone[-LOUD_SAMPLES:])
    recent = played[: len(played) - EARLIEST_SAMPLES][-LATEST_SAMPLES - LOUD_SAMPLES :]
    loudest_played = max(power(stretch) for stretch in recent.reshape(-1, LOUD_SAMPLES))
    if loudness < max(LOUD_POWER, LOUD_SHARE * loudest_played):
        return False
    return peak_correlation(played, microphone) < LEAST_OWN_CORRELATION
