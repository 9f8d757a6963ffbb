"""The responses of a conversation: one runs, others wait for it, and the newest decides what the conversation does."""

from collections import deque
from collections.abc import Callable

from voxcli.chat.responses.response import Response


class ResponseQueue:
    """Runs responses one after another, in the order in which they were added."""

    def __init__(self, submit: Callable[[Response], None]) -> None:
        """Begin without responses. `submit` runs one; call `finish_running` when it is over."""
        self._submit = submit
        self._waiting: deque[Response] = deque()  # these start when `running` is over
        self.newest: Response | None = None  # speculative or a turn; None once it is remembered, stopped or dropped
        self.running: Response | None = None

    @property
    def turn(self) -> Response | None:
        """The newest response, if it is a turn."""
        return self.newest if self.newest and self.newest.state == "turn" else None

    @property
    def speculative(self) -> Response | None:
        """The newest response, if it is speculative."""
        return self.newest if self.newest and self.newest.state == "speculative" else None

    def add(self, response: Response) -> None:
        """Make a response the newest; it starts at once if none is running."""
        self.newest = response
        self._waiting.append(response)
        self.start_next()

    def finish_running(self) -> None:
        """Note that nothing of the running response runs any more; the next one waits for `start_next`."""
        self.running = None

    def start_next(self) -> None:
        """Start the next response if the one before it is over and remembered."""
        if self._waiting and self.running is None:
            self.running = self._waiting.popleft()
            self._submit(self.running)

    def clear(self, response: Response) -> None:
        """Let there be no newest response, if it is this one."""
        if response is self.newest:
            self.newest = None

    def unfinished_turn(self) -> Response | None:
        """Return the last turn that is still to be remembered, and to stay so; None if there is none."""
        responses = [*([self.running] if self.running else []), *self._waiting]
        turns = [each for each in responses if each.state == "turn" and not each.repeats and not each.is_undone]
        return turns[-1] if turns else None

    def stop_all(self) -> None:
        """Interrupt every response."""
        for response in (self.newest, self.running, *self._waiting):
            if response:
                response.stop()
