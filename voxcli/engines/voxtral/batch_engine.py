"""The Voxtral engine for many threads: each has its own reply, and all of them are decoded together.

    reply() on many threads --prompts--> one thread that drives `rows` --tokens--> each its own text

To whoever calls it is an engine like any other. It knows how prompts are written and what an error means
from the `voxtral` engine, which makes it; rows and caches are the business of `rows`.

On a CPU one thread alone computes, spectrograms included: more threads would take turns on the same cores.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue

import torch

from voxcli.core.session import Session
from voxcli.core.turn import Engine, PassReport, Utterance
from voxcli.engines.voxtral.runtime.batch_decoder import ENCODED_TOGETHER, BatchDecoder, Request
from voxcli.engines.voxtral.tokenizer import TextStream, Tokenizer
from voxcli.errors import ModelError

SECOND_TOLD = 16  # tokens of a reply when its reader is woken again: about a sentence

Prompt = tuple[list[int], torch.Tensor | None]  # ids, and features of the clip
_Asked = tuple[Request, Session, Utterance]


class BatchEngine(Engine):
    """Implements `voxcli.core.turn.Engine`; `reply` may be called by many threads."""

    name = "voxtral"

    def __init__(
        self,
        model: str,
        rows: BatchDecoder,
        write: Callable[[Session, Utterance], Prompt],
        tokenizer: Tokenizer,
        errors: Callable[[int], AbstractContextManager[None]],
        close: Callable[[], None],
    ) -> None:
        """Begin to drive `rows`.

        Args:
            model: what it is called in records.
            write: makes the prompt; called by one thread at a time, on a CPU by the one that computes.
            errors: makes of what torch raises, within, what users are told; takes the length of the prompt.
            close: called when the engine is closed, and nothing computes any more.
        """
        self.model = model
        self.replies_at_once = rows.most + min(rows.most, ENCODED_TOGETHER)  # so that the next ones wait
        self._rows, self._tokenizer = rows, tokenizer
        self._write, self._errors, self._close = write, errors, close
        self._writing = threading.Lock()  # tokenizers are not all for several threads
        self._writes_ahead = rows.device != "cpu"  # on the threads that ask, while a GPU computes
        self._inbox: SimpleQueue[_Asked | None] = SimpleQueue()
        self._asking = threading.Lock()  # what is asked is in the inbox before the engine is closed, or refused
        self._is_closed = False
        self._driver = threading.Thread(target=self._drive, name="decoding", daemon=True)
        self._driver.start()

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        """Yield the reply in deltas of some tokens; return the report.

        Once `interrupt` is set, it ends with the next token that is made for it.

        Raises:
            VoxError: as `voxtral.VoxtralEngine.reply`.
            ModelError: the engine is closed.
        """
        told, closed, text = _TokenQueue(), threading.Event(), TextStream(self._tokenizer)
        ask = Request([], None, told.tell, lambda: interrupt.is_set() or closed.is_set())
        if self._writes_ahead and not self._is_closed:
            self._prepare(ask, session, utterance)
        with self._asking:
            if self._is_closed:
                raise _closed()
            self._inbox.put((ask, session, utterance))
        try:
            while (some := told.get()) is not None:
                if isinstance(some, Exception):
                    with self._errors(len(ask.ids)):
                        raise some
                if delta := "".join(text.add(token_id) for token_id in some):
                    yield delta
        finally:
            closed.set()
        passes = max(ask.encoder_calls, ask.generations)
        return PassReport(passes, len(ask.ids), ask.cached_tokens, len(ask.said))

    def close(self) -> None:
        """Free the model's memory; replies that are under way end with an error. May be called again."""
        with self._asking:
            if self._is_closed:
                return
            self._is_closed = True
        self._inbox.put(None)  # the driver may be waiting for something
        self._driver.join()
        error = _closed()
        while not self._inbox.empty():
            if asked := self._inbox.get():
                asked[0].tell(error)
        self._rows.fail(error)
        del self._rows
        self._close()

    def _drive(self) -> None:
        while not self._is_closed:
            self._take_in()
            try:
                self._rows.advance()
            except Exception as error:  # noqa: BLE001 - raised again by each `reply` that it ends
                self._rows.fail(error)

    def _take_in(self) -> None:
        """Hand on as many prompts as are encoded together, waiting for one where nothing else is to be done."""
        while self._rows.waiting < ENCODED_TOGETHER:
            try:
                asked = self._inbox.get(block=self._rows.is_idle)
            except Empty:
                return
            if asked is None:
                return
            self._hand_on(*asked)

    def _hand_on(self, ask: Request, session: Session, utterance: Utterance) -> None:
        try:
            if not (ask.ids or ask.is_given_up()):
                self._prepare(ask, session, utterance)
        except Exception as error:  # noqa: BLE001 - raised again by `reply`
            ask.tell(error)
        else:
            self._rows.add(ask)

    def _prepare(self, ask: Request, session: Session, utterance: Utterance) -> None:
        with self._writing, self._errors(0):
            ask.ids, ask.features = self._write(session, utterance)


def _closed() -> ModelError:
    return ModelError("the engine is closed")


class _TokenQueue:
    """Tokens on their way from the thread that drives: the first at once, then each time as many as there were.

    To wake a thread for each token would cost more than a step.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[list[int] | Exception | None] = SimpleQueue()
        self._kept: list[int] = []
        self._count, self._awaited = 0, 1  # tokens so far, and with how many the reader is woken

    def tell(self, told: int | Exception | None) -> None:
        """Take a token; None at the end, or why it failed."""
        if isinstance(told, int):
            self._kept.append(told)
            self._count += 1
            if self._count == self._awaited:
                self._awaited = max(SECOND_TOLD, 2 * self._count)
                self._hand_over()
            return
        if self._kept:
            self._hand_over()
        self._queue.put(told)

    def get(self) -> list[int] | Exception | None:
        """Return the next tokens, waiting for them; None at the end, or why it failed."""
        return self._queue.get()

    def _hand_over(self) -> None:
        self._queue.put(self._kept)
        self._kept = []
