"""What a conversation is doing, in words, and which keys do something now; shared by the views for people."""

from collections.abc import Mapping

from voxcli.chat.events import (
    DeviceKind,
    DevicesChanged,
    InputLevel,
    LiveEvent,
    PushToTalk,
    Ready,
    State,
    StateChanged,
    TurnStarted,
    TurnTaken,
    TurnUndone,
)
from voxcli.chat.keyboard.bindings import OTHER_KEYS, SPACE_KEY
from voxcli.core.turn import SpeechFailed

# Left out first where there is no room for all keys. `q` always has room.
LEFT_OUT_FIRST = ("e", "c", "w", "R", "u", "r", "t", "i", "?", "space")

NO_DEVICE = {"input": "no microphone", "output": "no loudspeaker"}
SILENT = "silent microphone"


class Situation:
    """What the conversation is doing now, as far as the events tell."""

    def __init__(self) -> None:
        self.state: State = "starting"
        self.muted = False
        self.is_spoken = True  # replies are spoken, not only shown
        self._push_to_talk: PushToTalk = "off"
        self.has_keys = False  # there is a keyboard
        self._turns = 0  # Turns in the session.
        self._can_repeat = False
        self._can_ask_again = False
        self._has_voice = False  # whether the present turn was spoken
        self._lost: tuple[DeviceKind, ...] = ()
        self._is_zero = False

    def update(self, event: LiveEvent) -> None:
        """Apply an event."""
        match event:
            case StateChanged(state, muted):
                self.state, self.muted = state, muted or state == "muted"
            case Ready():
                self.is_spoken = event.voice is not None and event.output_device is not None
                self._push_to_talk, self.has_keys = event.push_to_talk, event.keys
                self._turns, self._can_repeat = event.turns, event.turns > 0
            case InputLevel():
                self._is_zero = event.is_zero
            case DevicesChanged():
                self._lost = event.lost
            case SpeechFailed():
                self.is_spoken = False
            case TurnStarted(utterance):
                self._can_ask_again, self._has_voice = True, utterance.clip is not None
            case TurnUndone():
                self._turns -= 1
            case TurnTaken():
                self._turns += 1
                self._can_repeat = self._can_repeat or bool(event.ended.turn.reply)

    @property
    def warning(self) -> str:
        """Why the microphone or the loudspeaker does not work, in two words; empty if both work."""
        if self._lost:
            return NO_DEVICE[self._lost[0]]
        return SILENT if self._is_zero and not self.muted and self.state in ("listening", "hearing", "asleep") else ""

    @property
    def label(self) -> str:
        """The state in words."""
        if self.warning:
            return self.warning
        if self.state == "listening" and self._push_to_talk != "off":
            return "hold space to talk" if self._push_to_talk == "hold" else "push space to talk"
        return self.state

    @property
    def keys(self) -> Mapping[str, str]:
        """The keys that do something now, and what they do."""
        if not self.has_keys:
            return {}
        replying = self.state in ("thinking", "speaking")
        return {
            "space": self._space(),
            **({"i": "interrupt"} if replying else {}),
            "t": "type",
            **({"r": "repeat"} if self._can_repeat and not replying else {}),
            **({"u": "undo"} if self._turns or replying else {}),
            **({"w": "your words"} if replying and self._has_voice else {}),
            **({"R": "ask again"} if self._can_ask_again else {}),
            **({"c": "copy"} if self._can_repeat else {}),
            "e": "edit",
            "?": "keys",
            "q": "end",
        }

    @property
    def all_keys(self) -> Mapping[str, str]:
        """All keys, and what they do."""
        return {"space": SPACE_KEY[self._push_to_talk], **OTHER_KEYS}

    def keys_that_fit(self, width: int) -> list[tuple[str, str]]:
        """Return the keys that do something now and fit a row, two columns apart."""
        keys = dict(self.keys)
        for key in LEFT_OUT_FIRST:
            if sum(len(key) + len(does) + 3 for key, does in keys.items()) - 2 <= width:
                break
            keys.pop(key, None)
        return list(keys.items())

    def _space(self) -> str:
        if self._push_to_talk == "off":
            return "unmute" if self.muted else "mute"
        if self.state == "hearing":
            return "send" if self._push_to_talk == "toggle" else "release to send"
        return "talk" if self._push_to_talk == "toggle" else "hold to talk"
