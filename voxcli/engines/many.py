"""The Voxtral engine for many threads: each has its own reply, and all of them are decoded together.

    reply() on many threads --prompts--> one thread that drives `rows` --tokens--> each its own text

To whoever calls it is an engine like any other. It knows how prompts are written and what an error means
from the `voxtral` engine, which makes it; rows and caches are the business of `rows`.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue

import torch

from voxcli.engines.rows import ENCODED_TOGETHER, Ask, Rows
from voxcli.engines.tokenizer import TextStream, Tokenizer
from voxcli.errors import ModelError
from voxcli.session import Session
from voxcli.turn import Engine, PassReport, Utterance

TOLD_TOGETHER = 16  # tokens, after the first: to wake a thread for each would cost more than a step on a GPU

Prompt = tuple[list[int], torch.Tensor | None]  # ids, and features of the clip


class ManyReplies(Engine):
    """Implements `voxcli.turn.Engine`; `reply` may be called by many threads."""

    name = "voxtral"

    def __init__(
        self,
        model: str,
        rows: Rows,
        write: Callable[[Session, Utterance], Prompt],
        tokenizer: Tokenizer,
        errors: Callable[[int], AbstractContextManager[None]],
        close: Callable[[], None],
    ) -> None:
        """Begin to drive `rows`.

        Args:
            model: what it is called in records.
            write: makes the prompt; called by one thread at a time.
            errors: makes of what torch raises, within, what users are told; takes the length of the prompt.
            close: called when the engine is closed, and nothing computes any more.
        """
        self.model = model
        self.replies_at_once = rows.most + min(rows.most, ENCODED_TOGETHER)  # so that the next ones wait, prepared
        self._rows, self._tokenizer = rows, tokenizer
        self._write, self._errors, self._close = write, errors, close
        self._writing = threading.Lock()  # tokenizers are not all for several threads, and features take all cores
        self._inbox: SimpleQueue[Ask | None] = SimpleQueue()
        self._driver = threading.Thread(target=self._drive, name="decoding", daemon=True)
        self._driver.start()

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        """Yield the reply in deltas of some tokens; return the report.

        Once `interrupt` is set, it ends with the next token that is made for it.

        Raises:
            VoxError: as `voxtral.VoxtralEngine.reply`.
        """
        with self._writing, self._errors(0):
            ids, features = self._write(session, utterance)
        tokens, closed = _Tokens(), threading.Event()
        ask = Ask(ids, features, tokens.tell, lambda: interrupt.is_set() or closed.is_set())
        del features  # of no use once the encoder has seen them
        text = TextStream(self._tokenizer)
        self._inbox.put(ask)
        try:
            with self._errors(len(ids)):
                for some in tokens:
                    if delta := "".join(text.add(token_id) for token_id in some):
                        yield delta
        finally:
            closed.set()
        passes = max(ask.encoder_calls, ask.generations)
        return PassReport(passes, len(ids), ask.cached_tokens, len(ask.said))

    def close(self) -> None:
        """Free the model's memory; replies that are under way end with an error."""
        self._inbox.put(None)
        self._driver.join()
        self._rows.fail(ModelError("the engine was closed"))
        del self._rows
        self._close()

    def _drive(self) -> None:
        while self._took_in():
            try:
                self._rows.advance()
            except Exception as error:  # noqa: BLE001 - raised again by each `reply` that it ends
                self._rows.fail(error)

    def _took_in(self) -> bool:
        """Hand new prompts on, waiting for one where there is nothing to do; return False at the end."""
        is_waiting = self._rows.is_idle
        while True:
            try:
                ask = self._inbox.get(block=is_waiting)
            except Empty:
                return True
            if ask is None:
                return False
            self._rows.add(ask)
            is_waiting = False


class _Tokens:
    """Tokens on their way from the thread that drives: the first one at once, then some together."""

    def __init__(self) -> None:
        self._told: SimpleQueue[list[int] | Exception | None] = SimpleQueue()
        self._kept: list[int] = []
        self._is_first = True

    def tell(self, told: int | Exception | None) -> None:
        """Take a token; None at the end, or why it failed."""
        if isinstance(told, int):
            self._kept.append(told)
        if self._kept and (self._is_first or len(self._kept) >= TOLD_TOGETHER or not isinstance(told, int)):
            self._told.put(self._kept)
            self._kept, self._is_first = [], False
        if not isinstance(told, int):
            self._told.put(told)

    def __iter__(self) -> Iterator[list[int]]:
        while (told := self._told.get()) is not None:
            if isinstance(told, Exception):
                raise told
            yield told
