"""The microphone is ignored during playback and for a tail."""

from tests.support.room import SECOND
from voxcli.chat.speech.half_duplex import HalfDuplex


def test_half_duplex_is_shut_while_playing_and_for_a_tail() -> None:
    gate = HalfDuplex(tail_ms=400)
    blocks = [(position, 1000 <= position < 3000) for position in range(0, 16000, 200)]
    is_open = [gate.is_open(position, playing=playing) for position, playing in blocks]
    last_played = 2800
    expected = [position < 1000 or position >= last_played + 0.4 * SECOND for position, _ in blocks]
    assert is_open == expected


def test_half_duplex_stays_shut_between_two_pieces() -> None:
    gate = HalfDuplex(tail_ms=400)
    playing = [True, False, False, True, False, False, False]
    is_open = [gate.is_open(index * SECOND // 5, playing=value) for index, value in enumerate(playing)]
    assert is_open == [False, False, True, False, False, True, True]
