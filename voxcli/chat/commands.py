"""What the user may tell a spoken conversation to do, by name, and the keys that say so."""

import math
import time
from collections.abc import Callable, Mapping

from voxcli.chat.events import KeysAsked, LiveEvent, Notice, PushToTalk
from voxcli.chat.keyboard.bindings import KEY_COMMANDS
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.keyboard.tools import UserTools
from voxcli.chat.messages import ListenerControl
from voxcli.chat.responses.response import Response
from voxcli.chat.responses.turns import Turns
from voxcli.core.protocols import Utterance
from voxcli.errors import VoxError

SECOND_INTERRUPT_SECONDS = 2.0  # a second Ctrl-C within this time ends the conversation


class Commands:
    """Runs the user's commands; `actions` has them by name."""

    def __init__(
        self,
        turns: Turns,
        listener: ListenerControl,
        discard_utterance: Callable[[], None],
        show: Callable[[LiveEvent], None],
        tools: UserTools,
        push_to_talk: PushToTalk,
    ) -> None:
        """Connect the parts.

        Args:
            discard_utterance: mutes the listener and discards the open utterance.
            show: renders an event.
            tools: let the user type, edit and copy text.
            push_to_talk: what the space key does.
        """
        self._turns = turns
        self._listener = listener
        self._discard = discard_utterance
        self._show = show
        self._push_to_talk = push_to_talk
        self.actions: Mapping[str, Callable[[], None]] = {
            "mute": lambda: self._set_muted(True),
            "unmute": lambda: self._set_muted(False),
            "toggle-mute": lambda: self._set_muted(not self.is_muted),
            "talk": self._talk,
            "send": self._send,
            "interrupt": turns.stop,
            "type": lambda: self._answer_line(tools.read_line),
            "edit": lambda: self._answer_line(tools.edit_line),
            "repeat": lambda: self._answer_line(lambda: "(repeat)", repeats=True),
            "ask-again": self._ask_again,
            "undo": turns.undo,
            "understood": turns.ask_understood,
            "copy": lambda: turns.history.copy_reply(tools.copy),
            "keys": lambda: show(KeysAsked()),
            "quit": self._quit,
        }
        self.is_muted = False
        self.has_ended = False  # The user has ended the conversation.
        self.interrupted = False  # Ctrl-C has ended it.
        self._is_talking = False  # push-to-talk
        self._interrupted_at = -math.inf  # monotonic seconds of the last Ctrl-C

    def on_key(self, key: Key) -> None:
        """Run the command of a key, if it has one."""
        match key:
            case Key(" ") if self._push_to_talk == "hold":
                self._set_talking(key.kind != "release")
            case Key(_, "repeat" | "release"):
                pass
            case Key(" ") if self._push_to_talk == "toggle":
                self._set_talking(not self._is_talking)
            case Key("r", shift=True):
                self._ask_again()
            case Key(char) if char in KEY_COMMANDS:
                self.actions[KEY_COMMANDS[char]]()

    def on_ctrl_c(self) -> None:
        """Interrupt the reply; the second time, end the conversation."""
        now = time.monotonic()
        if now - self._interrupted_at < SECOND_INTERRUPT_SECONDS:
            self.has_ended = self.interrupted = True
            return
        self._interrupted_at = now
        self._turns.stop()
        self._show(Notice("Ctrl-C again ends the conversation"))

    def _quit(self) -> None:
        self.has_ended = True

    def _set_muted(self, muted: bool) -> None:
        self.is_muted = muted
        if muted:
            self._discard_utterance()
        else:
            self._listener.mute(False)

    def _talk(self) -> None:
        """Hold an utterance open until `_send`; unmute the microphone if it is muted."""
        if self.is_muted:
            self._set_muted(False)
        self._set_talking(True)

    def _send(self) -> None:
        """End the open utterance, whether a command or voice has opened it."""
        self._is_talking = False
        self._listener.push_to_talk(False)

    def _set_talking(self, talking: bool) -> None:
        if talking == self._is_talking:
            return  # a key that is held down repeats
        self._is_talking = talking
        if talking:
            self._turns.stop()
        self._listener.push_to_talk(talking)

    def _discard_utterance(self) -> None:
        self._is_talking = False
        self._discard()

    def _answer_line(self, read_line: Callable[[], str], *, repeats: bool = False) -> None:
        """Answer a typed line, or repeat the last reply; the microphone is muted meanwhile."""
        self._discard_utterance()
        try:
            if line := read_line().strip():
                self._turns.answer(Response(Utterance(None, line), time.monotonic(), repeats=repeats))
        except VoxError as error:
            self._show(Notice(error.message + (f" ({error.hint})" if error.hint else "")))
        self._listener.mute(self.is_muted)

    def _ask_again(self) -> None:
        """Ask the last utterance again; its turn, if there is one, is undone."""
        if self._turns.history.last is None:
            self._show(Notice("there is nothing to ask again"))
            return
        self._discard_utterance()
        self._turns.answer_again()
        self._listener.mute(self.is_muted)
