"""Builds what listens in a live conversation: endpointing, echo cancellation, the end-of-turn model and sleep."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING

from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.chat.control import Control
    from voxcli.chat.devices.hotplug import AudioDevices
    from voxcli.chat.listener import Listener
    from voxcli.chat.messages import Inbound, SleepChanged
    from voxcli.chat.speech.echo import EchoCanceller, Timeline
    from voxcli.chat.speech.endpointing import Endpointer
    from voxcli.chat.speech.silence import TurnSilence
    from voxcli.chat.speech.wake_word import SleepControl
    from voxcli.config.loading import Settings


def open_sleep(settings: "Settings", post: "Callable[[Control | SleepChanged], None]") -> "SleepControl | None":
    """Return what lets the conversation sleep until its wake word is spoken; None if it never sleeps.

    Raises:
        ConfigError: a wake word is combined with push-to-talk.
        ModelError: the extra is not installed.
    """
    live = settings.live
    if live.wake_word == "off":
        return None
    from voxcli.chat.speech.wake_word import SleepControl, load

    if live.push_to_talk != "off":
        raise ConfigError("a wake word and push-to-talk exclude each other", hint="--wake-word off, or no push-to-talk")
    return SleepControl(load(live.wake_word), live.sleep_seconds, post)


def open_listener(
    settings: "Settings",
    devices: "AudioDevices",
    post: "Callable[[Inbound], None]",
    notice: Callable[[str], None],
    stack: ExitStack,
    sleep: "SleepControl | None",
    *,
    kept: bool,
) -> tuple["Listener", str]:
    """Return the listener, and how echo is handled: off, cancelled or half-duplex.

    Args:
        post: receives the listener's messages.
        notice: told what is missing.
        kept: whether what is learned of the user's pauses is stored when the stack closes.

    Raises:
        VoxError: a part that the settings ask for can't be opened.
    """
    from voxcli.audio.vad import Detector
    from voxcli.chat.listener import PLAYED_SECONDS, Listener
    from voxcli.chat.speech.echo import Timeline
    from voxcli.chat.speech.level_gate import LevelGate
    from voxcli.chat.speech.turn_detector import open_detector
    from voxcli.config.paths import cache_folder

    live = settings.live
    played = Timeline(PLAYED_SECONDS + live.max_utterance_seconds)
    canceller = _open_canceller(settings, played, notice, has_speaker=devices.speaker is not None)
    is_complete, no_model = open_detector(live.end_of_turn, cache_folder())
    if no_model:
        notice(no_model)
    listens_always = devices.speaker is None or (canceller is not None and live.barge_in)
    can_retract = listens_always and live.retract_ms > 0
    silence = _turn_silence(settings, devices.microphone.device.name, stack, kept=kept, can_retract=can_retract)
    endpointer = _endpointer(settings, silence, has_model=is_complete is not None)
    listener = Listener(
        devices.microphone,
        devices.speaker,
        LevelGate(Detector().probability, endpointer.is_loud).probability,
        endpointer,
        canceller,
        played,
        post,
        barge_in=live.barge_in and live.push_to_talk == "off",
        is_complete=is_complete,
        stays_asleep=sleep.stays_asleep if sleep else None,
    )
    return listener, "off" if devices.speaker is None else "cancelled" if canceller else "half-duplex"


def _open_canceller(
    settings: "Settings", played: "Timeline", notice: Callable[[str], None], *, has_speaker: bool
) -> "EchoCanceller | None":
    """Return the echo canceller, which also suppresses noise and adjusts the level; None if none is needed."""
    from voxcli.chat.speech.echo import open_canceller

    live = settings.live
    processing = {"noise_suppression": live.noise_suppression, "gain_control": live.gain_control}
    if not (has_speaker or any(processing.values())):
        return None
    canceller, missing = open_canceller(live.echo, played, **processing)
    if missing and has_speaker:
        notice(missing)
    if canceller is None and any(processing.values()):
        why = 'live.echo is "off"' if live.echo == "off" else "they need the extra echo: pip install 'voxcli[echo]'"
        notice(f"there is no noise suppression and no gain control, because {why}")
    return canceller


def _endpointer(settings: "Settings", silence: "TurnSilence", *, has_model: bool) -> "Endpointer":
    from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings

    live = settings.live
    given = {name: getattr(live, name) for field in fields(EndpointingSettings) if hasattr(live, name := field.name)}
    given |= {
        "speculative_replies": live.speculative_replies or has_model,
        "by_voice": live.push_to_talk == "off",
        "min_silence_ms": round(silence.ms),
    }  # Speculative replies and the end-of-turn model both need pauses.
    return Endpointer(EndpointingSettings(**given), silence)


def _turn_silence(
    settings: "Settings", microphone: str, stack: ExitStack, *, kept: bool, can_retract: bool
) -> "TurnSilence":
    """Return the silence that ends a turn.

    Args:
        kept: whether what it learns is stored when the stack closes.
        can_retract: whether a turn that ends too early can be taken back.
    """
    from voxcli.chat.speech.learned_pauses import load_silence, save_silence
    from voxcli.chat.speech.silence import FINAL_LOWEST_MS, LOWEST_MS, TurnSilence
    from voxcli.config.paths import data_folder

    if settings.live.min_silence_ms != "auto":
        return TurnSilence.fixed(settings.live.min_silence_ms)
    silence = load_silence(data_folder(), microphone, LOWEST_MS if can_retract else FINAL_LOWEST_MS)
    if kept:
        stack.callback(save_silence, data_folder(), microphone, silence)
    return silence
