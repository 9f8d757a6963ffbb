"""The Voxtral engine for many callers: replies are decoded together.

    reply() on many threads --requests--> one decoding thread --tokens--> each caller decodes its own text

The `VoxtralEngine` that creates it writes its prompts and translates its errors. On a CPU, the decoding thread
makes the spectrograms too: more threads would only take turns on the same cores.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue

import torch

from voxcli.core.protocols import Engine, ReplyWithTools, Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.aside import Aside, gone
from voxcli.engines.voxtral.runtime.batch_decoder import ENCODED_TOGETHER, BatchDecoder, Request
from voxcli.engines.voxtral.tokenizer import TextStream, Tokenizer
from voxcli.engines.voxtral.tool_layout import ToolLayout
from voxcli.engines.voxtral.tool_reply import ToolReply
from voxcli.errors import ModelError

# Tokens of a slot for calls and results of a usual length. Where longer ones need another length of slots, a request
# waits until all slots are free, and its prompt is prefilled again.
SPARE_TOKENS = 256
SECOND_BLOCK = 16  # tokens after which a reader is woken for the second time: about a sentence

Prompt = tuple[list[int], torch.Tensor | None]  # ids, and features of the clip
_Entry = tuple[Request, Session, Utterance]


class BatchEngine(Engine):
    """Implements `voxcli.core.protocols.Engine`; `reply` may be called by many threads."""

    name = "voxtral"

    def __init__(
        self,
        model: str,
        decoder: BatchDecoder,
        write: Callable[[Session, Utterance], Prompt],
        tokenizer: Tokenizer,
        errors: Callable[[int], AbstractContextManager[None]],
        close: Callable[[], None],
        *,
        writes_ahead: bool,
        tools_of: Callable[[Session], ToolLayout | None] = lambda _: None,
        tool_room: Callable[[Session, int], int] = lambda _session, _prompt_tokens: 0,
        supports_tools: bool = False,
        aside: Aside | None = None,
    ) -> None:
        """Start the thread that drives `decoder`.

        Args:
            model: its name in records.
            write: returns the prompt; called by one thread at a time.
            errors: context manager that turns torch's errors into VoxErrors; takes the length of the prompt.
            close: called when the engine is closed and the decoding thread has ended.
            writes_ahead: prepare prompts on the calling threads, while a GPU computes, not on the decoding thread.
            tools_of: returns what writes a session's tools; None if it has none.
            tool_room: returns the most tokens that calls and results may add to a prompt of a length.
            supports_tools: whether sessions may have tools.
            aside: asks what was understood, for which each thread's last clip is kept, encoded; None if nobody will.
        """
        self.model = model
        self.supports_tools = supports_tools
        self.replies_at_once = decoder.most + min(decoder.most, ENCODED_TOGETHER)  # the next requests wait, ready
        self._decoder, self._tokenizer = decoder, tokenizer
        self._write, self._errors, self._close = write, errors, close
        self._tools_of, self._tool_room = tools_of, tool_room
        self._writing = threading.Lock()  # some tokenizers are not thread-safe
        self._writes_ahead = writes_ahead
        self._aside = aside
        self._last = threading.local()  # `reply`: the last utterance of a thread, and its request
        self._inbox: SimpleQueue[_Entry | None] = SimpleQueue()
        self._asking = threading.Lock()  # a request enters the inbox before the engine is closed, or is refused
        self._is_closed = False
        self._driver = threading.Thread(target=self._drive, name="decoding", daemon=True)
        self._driver.start()

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> ReplyWithTools:
        """Yield the reply in deltas of some tokens, and the calls of the session's tools; return the report.

        Once `interrupt` is set, the reply ends with the next token. While tools run, other requests may take the slot;
        the prompt is then prefilled again, but its clip is not encoded again.

        Raises:
            VoxError: as `voxtral.VoxtralEngine.reply`.
            ModelError: the engine is closed.
        """
        closed, tokens = threading.Event(), TokenQueue()
        reply = ToolReply(self._tokenizer, self._tools_of(session), self._writing)
        first = request = Request([], None, tokens.notify, lambda: interrupt.is_set() or closed.is_set())
        request.keeps_audio = bool(self._aside or session.tools)
        request.room = (self._aside.room if self._aside else 0) + (SPARE_TOKENS if session.tools else 0)
        self._last.reply = None

        def generate(added: Sequence[int]) -> Iterator[Sequence[int]]:
            nonlocal request, tokens
            if added:
                tokens = TokenQueue()
                request = request.continued([*first.ids, *added], tokens.notify, first.is_cancelled)
            elif self._writes_ahead and not self._is_closed:
                self._prepare(request, session, utterance)
            self._queue(request, session, utterance)
            yield from self._tokens(tokens, request)

        try:
            is_full = yield from reply.run(generate, lambda: self._tool_room(session, len(first.ids)), interrupt.is_set)
        finally:
            closed.set()
        if self._aside and utterance.clip:
            self._last.reply = utterance, request
        passes = max(first.encoder_calls, first.generations)
        return reply.report(passes, len(first.ids), first.cached_tokens, is_full=is_full)

    def understand(self, utterance: Utterance) -> Generator[str, None, None]:
        """Yield what the model understood, in blocks of tokens; see `voxcli.core.protocols.Engine`.

        Raises:
            ModelError: the thread's last reply was to another utterance, or its clip was not kept.
        """
        found, self._last.reply = getattr(self._last, "reply", None), None
        if self._aside is None or found is None or found[0] is not utterance:
            raise gone()
        return self._understood(self._aside, found[1], utterance)

    def _understood(self, aside: Aside, replied: Request, utterance: Utterance) -> Generator[str, None, None]:
        tokens, closed, text = TokenQueue(), threading.Event(), TextStream(self._tokenizer)
        said = [
            token_id for token_id in replied.generated if token_id != aside.audio_id
        ]  # It stands for the clip alone.
        ids = [*replied.ids, *said, *aside.ids]
        request = replied.continued(ids, tokens.notify, closed.is_set, aside.sampling)
        self._queue(request, Session(), utterance)
        try:
            for some in self._tokens(tokens, request):
                if delta := "".join(text.add(token_id) for token_id in some):
                    yield delta
        finally:
            closed.set()

    def _queue(self, request: Request, session: Session, utterance: Utterance) -> None:
        with self._asking:
            if self._is_closed:
                raise _closed()
            self._inbox.put((request, session, utterance))

    def _tokens(self, tokens: "TokenQueue", request: Request) -> Iterator[Sequence[int]]:
        """Yield the tokens of a request in blocks; raise the error that ends it."""
        while (some := tokens.get()) is not None:
            if isinstance(some, Exception):
                with self._errors(len(request.ids)):
                    raise some
            yield some

    def close(self) -> None:
        """Free the model's memory. Replies in progress fail; closing twice does nothing."""
        with self._asking:
            if self._is_closed:
                return
            self._is_closed = True
        self._inbox.put(None)  # wakes the decoding thread
        self._driver.join()
        error = _closed()
        while not self._inbox.empty():
            if entry := self._inbox.get():
                entry[0].notify(error)
        self._decoder.fail(error)
        del self._decoder
        self._close()

    def _drive(self) -> None:
        while not self._is_closed:
            self._receive_requests()
            try:
                self._decoder.advance()
            except Exception as error:  # noqa: BLE001 - raised again by each `reply` that it ends
                self._decoder.fail(error)

    def _receive_requests(self) -> None:
        """Move requests from the inbox to the decoder, as many as are encoded together; wait for one when idle."""
        while self._decoder.waiting < ENCODED_TOGETHER:
            try:
                entry = self._inbox.get(block=self._decoder.is_idle)
            except Empty:
                return
            if entry is None:
                return
            self._add_request(*entry)

    def _add_request(self, request: Request, session: Session, utterance: Utterance) -> None:
        try:
            if not (request.ids or request.is_cancelled()):
                self._prepare(request, session, utterance)
        except Exception as error:  # noqa: BLE001 - raised again by `reply`
            request.notify(error)
        else:
            self._decoder.add(request)

    def _prepare(self, request: Request, session: Session, utterance: Utterance) -> None:
        with self._writing, self._errors(0):
            request.ids, request.features = self._write(session, utterance)


def _closed() -> ModelError:
    return ModelError("the engine is closed")


class TokenQueue:
    """Passes tokens from the decoding thread to a reader, in blocks that double in size.

    Waking a thread for every token would cost more than a step.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[list[int] | Exception | None] = SimpleQueue()
        self._buffered: list[int] = []
        self._count, self._awaited = 0, 1  # tokens so far; the count that wakes the reader

    def notify(self, tokens: int | Exception | None) -> None:
        """Add a token, or the end of the reply: None, or the error."""
        if isinstance(tokens, int):
            self._buffered.append(tokens)
            self._count += 1
            if self._count == self._awaited:
                self._awaited = max(SECOND_BLOCK, 2 * self._count)
                self._flush()
            return
        if self._buffered:
            self._flush()
        self._queue.put(tokens)

    def get(self) -> list[int] | Exception | None:
        """Wait for the next tokens and return them; None at the end, or the error."""
        return self._queue.get()

    def _flush(self) -> None:
        self._queue.put(self._buffered)
        self._buffered = []
