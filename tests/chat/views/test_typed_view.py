"""The view of a typed conversation, which several threads write to."""

import io
import threading

from voxcli.chat.events import Notice
from voxcli.chat.views.typed import TypedView
from voxcli.core.turn import ReplyDelta
from voxcli.output import Output


class HeldStream(io.StringIO):
    """A stream whose first write takes until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(30)
        return super().write(text)


def test_a_notice_of_another_thread_waits_until_the_present_one_is_written() -> None:
    stream, started = HeldStream(), threading.Event()
    view = TypedView(Output(stream), Output(stream), is_terminal=False)
    reply = threading.Thread(target=view.show, args=(ReplyDelta("It rains."),), daemon=True)

    def tell() -> None:
        started.set()
        view.show(Notice("The timer for tea is over."))

    timer = threading.Thread(target=tell, daemon=True)
    reply.start()
    assert stream.begun.wait(30)
    timer.start()
    assert started.wait(30)
    timer.join(0.05)
    assert timer.is_alive()
    stream.go_on.set()
    for thread in (reply, timer):
        thread.join(30)
    assert stream.getvalue() == "It rains.\nThe timer for tea is over.\n"
