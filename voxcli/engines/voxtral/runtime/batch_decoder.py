"""Many prompts in, their replies out: rows of one cache that are decoded together.

    waiting -> encoded, some windows at once -> prefilled into a free row -> a token with each step -> over

A row is a stretch of the cache's memory, and a prompt is fed into it as into a cache of its own: rows need
no padding. A step feeds the last token of each, and so reads the weights once for all of them. A row that
is over is free for the next prompt before the next step: nobody waits for the longest reply.

Knows nothing of text, sessions and threads. How a step is computed is the business of `llama`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from voxcli.engines.voxtral.device.demand import cache_bytes_per_token
from voxcli.engines.voxtral.runtime import inputs
from voxcli.engines.voxtral.runtime.encoder import WindowEncoder, audio_tokens_per_window
from voxcli.engines.voxtral.runtime.kv_cache import SMALLEST_BUCKET, Cache
from voxcli.engines.voxtral.runtime.sampler import Sampler, Sampling
from voxcli.engines.voxtral.runtime.text_model import TextModel
from voxcli.errors import ModelError

ENCODED_TOGETHER = 8  # windows: enough to keep a GPU busy, and a GB of Mini's hidden states at most
ENCODED_ON_CPU = 1  # 8 take as long as one by one with a tiny model, and a tenth longer with 150 M parameters
SHARE_FOR_CACHE = 0.6  # of the free memory; the rest is for what encoder and steps compute with


@dataclass(eq=False)
class Request:
    """A prompt, what becomes of it, and who is told."""

    ids: Sequence[int]  # the whole prompt
    features: torch.Tensor | None  # of its clip, (windows, mels, frames); dropped when encoded
    tell: Callable[[int | Exception | None], None]  # each token; at the end None, or why it failed
    is_given_up: Callable[[], bool] = lambda: False  # the reply then ends within one token
    said: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, what was in its row already
    encoder_calls: int = 0
    generations: int = 0
    audio: torch.Tensor | None = None  # embeddings of the clip, (tokens, hidden)


@dataclass(eq=False)
class _Slot:
    number: int
    cache: Cache
    ask: Request | None = None
    token: int = 0  # to be fed next


class BatchDecoder:
    """Decodes with one Voxtral model. One call at a time: it is not for several threads at once."""

    def __init__(
        self,
        model: Any,
        text: TextModel,
        encoder: WindowEncoder,
        sampling: Sampling,
        *,
        most: int,
        longest: int,
        free_bytes: Callable[[], int | None],
        is_out_of_memory: Callable[[Exception], bool],
        smallest_capacity: int = SMALLEST_BUCKET,
    ) -> None:
        """Take over what a `decoder.Decoder` is made of; the memory is allocated for the first prompt.

        Args:
            sampling: of all replies. With a seed, a reply still depends on what is decoded beside it.
            most: rows; there are fewer where the memory has no room for so many.
            longest: tokens of prompt and reply that a row ever has to hold.
            free_bytes: says how much memory is free now; None where that is not known.
            smallest_capacity: tokens of a row to begin with; it doubles where a prompt needs more.
        """
        self.most = most
        self.steps = 0
        self._config, self._text, self._encoder = model.config, text, encoder
        self._sampler = Sampler(sampling, text.device)
        self._longest, self._smallest_capacity = longest, smallest_capacity
        self._free_bytes, self._is_out_of_memory = free_bytes, is_out_of_memory
        self.device: str = text.device.type
        self._clips = count(1)
        self._waiting: deque[Request] = deque()
        self._rows: list[_Slot] = []
        self._cache: Cache | None = None  # of all rows
        self._capacity = 0  # of each
        together = ENCODED_ON_CPU if self.device == "cpu" else ENCODED_TOGETHER
        self._tried, self._encoded_together = most, together  # less where memory ran out

    @property
    def is_idle(self) -> bool:
        """Nobody waits, and no reply is under way."""
        return not self._waiting and not self._live()

    @property
    def waiting(self) -> int:
        """How many prompts have no row yet."""
        return len(self._waiting)

    def add(self, ask: Request) -> None:
        """Have a prompt answered, after those that wait already."""
        if ask.is_given_up():
            ask.tell(None)
            return
        try:
            inputs.check(self._config, ask.ids, ask.features, len(ask.ids) + 1)
        except ModelError as error:
            ask.tell(error)
        else:
            self._waiting.append(ask)

    @torch.inference_mode()
    def advance(self) -> None:
        """Give free rows to those who wait, and each reply its next token.

        Where memory runs out, there are fewer rows from then on, and what was begun in them goes on later;
        a prompt that does not fit alone fails.
        """
        if self.device == "cuda":
            torch.cuda.set_device(self._text.device)  # each thread has its own
        try:
            self._seat()
            self._step()
        except Exception as error:
            if not self._is_out_of_memory(error):
                raise
            self._put_back()
            if self._tried > 1 or self._encoded_together > 1:
                self._tried, self._encoded_together = max(1, self._tried // 2), max(1, self._encoded_together // 2)
            else:
                self._waiting.popleft().tell(error)
                self._tried = self.most

    def fail(self, error: Exception) -> None:
        """End all replies and prompts with an error."""
        for row in self._live():
            self._end(row, error)
        while self._waiting:
            self._waiting.popleft().tell(error)

    def _live(self) -> list[_Slot]:
        return [row for row in self._rows if row.ask]

    def _put_back(self) -> None:
        """Let what was begun wait again, first in line and with what it has said, and free the rows."""
        for row in reversed(self._live()):
            if row.ask:
                self._waiting.appendleft(row.ask)
        self._rows, self._cache, self._capacity = [], None, 0

    def _seat(self) -> None:
        while left := self._next_group():
            try:
                self._encode([ask for ask in left if ask.features is not None])
                while left:
                    self._prefill(left[0])
                    left.popleft()
            except Exception:
                self._waiting.extendleft(reversed(left))
                raise

    def _next_group(self) -> deque[Request]:
        """Take from those who wait as many as there are rows for, and as are encoded together."""
        group: deque[Request] = deque()
        windows = 0
        while self._waiting and windows < self._encoded_together:
            ask = self._waiting[0]
            if ask.is_given_up():
                self._waiting.popleft().tell(None)
                continue
            if not self._has_row(ask, len(group)):
                break
            windows += 0 if ask.features is None else len(ask.features)
            group.append(self._waiting.popleft())
        return group

    def _has_row(self, ask: Request, taken: int) -> bool:
        """Return whether a row is free beside `taken` others.

        None is where the rows are to be replaced, which they are once all of them are free: the prompt
        needs longer ones, or all would do with shorter ones, of which there could be more.
        """
        live = self._live()
        begun = [row.ask for row in live if row.ask]
        wanted = max(self._capacity_for(each) for each in (*begun, *self._waiting))
        if not begun and not taken and wanted != self._capacity:
            self._allocate(wanted)
        if self._capacity_for(ask) > self._capacity or (wanted < self._capacity and len(self._rows) < self._tried):
            return False
        return len(live) + taken < len(self._rows)

    def _capacity_for(self, ask: Request) -> int:
        """Return how long the row of a prompt is: one of a few lengths."""
        needed = len(ask.ids) + self._sampler.sampling.max_tokens
        capacity = self._smallest_capacity
        while capacity < needed:
            capacity *= 2
        return max(needed, min(capacity, self._longest))

    def _allocate(self, capacity: int) -> None:
        self._rows, self._cache = [], None  # before the new ones are there: both together may not fit
        rows, free = self._tried, self._free_bytes()
        if free is not None:
            token_bytes = cache_bytes_per_token(self._config.text_config, self._text.dtype.itemsize)
            rows = max(1, min(rows, int(SHARE_FOR_CACHE * free) // (token_bytes * capacity)))
        self._cache = self._text.allocate(capacity, capacity, rows)
        parts = [self._cache.part(number * capacity, capacity) for number in range(rows)]
        self._rows, self._capacity = [_Slot(number, part) for number, part in enumerate(parts)], capacity

    def _encode(self, asks: Sequence[Request]) -> None:
        """Encode the clips of some prompts, windows of several at once."""
        if not asks:
            return
        windows: Any = torch.cat([ask.features for ask in asks if ask.features is not None])
        parts = [self._encoder.together(part) for part in windows.split(self._encoded_together)]
        embeddings = torch.cat(parts)
        tokens = audio_tokens_per_window(self._config.audio_config)
        for ask in asks:
            length = tokens * (0 if ask.features is None else len(ask.features))
            ask.audio, embeddings = embeddings[:length].clone(), embeddings[length:]
            ask.features = None
            ask.encoder_calls += 1

    def _prefill(self, ask: Request) -> None:
        """Feed a prompt, and what was said already, into the free row that holds most of its beginning."""
        audio_id, clip = self._config.audio_token_id, -next(self._clips)  # it stands for this clip's `[AUDIO]` alone
        ids = [*ask.ids, *ask.said]
        tokens = [clip if token_id == audio_id else token_id for token_id in ids]
        free = [row for row in self._rows if not row.ask]
        row = max(free, key=lambda row: (row.cache.common(tokens), -row.number))
        start = min(row.cache.common(tokens), len(tokens) - 1)
        row.cache.rewind(start)
        ask.cached_tokens = start
        embeddings = inputs.embeddings(self._text, ids[start:], ask.audio, audio_id)
        for chunk in embeddings.split(inputs.CHUNK_TOKENS):
            hidden = self._text.prefill(chunk, start, row.cache)
            row.cache.extend(tokens[start : start + len(chunk)])
            start += len(chunk)
        ask.generations += 1
        row.ask = ask
        self._take(row, int(self._sampler.choose(self._text.head(hidden))))

    def _step(self) -> None:
        """Feed the last token of each reply; rows that are free between others compute something that nobody reads."""
        live = self._live()
        if not live or self._cache is None:
            return
        rows = self._rows[: live[-1].number + 1]
        longest = max(row.cache.length for row in live) + 1
        # Kernels of few shapes pay on a GPU, where they may be captured; elsewhere, it pays to read less.
        extent = longest if self.device == "cpu" else min(-(-longest // 256) * 256, self._capacity)
        now = torch.tensor([[row.token for row in rows], [row.cache.length for row in rows]]).to(self._text.device)
        logits = self._text.step_rows(now[0], now[1], self._cache, self._capacity, extent)
        chosen: list[int] = self._sampler.sample_each(logits).tolist()  # the one moment that waits for the device
        self.steps += 1
        for row in live:
            row.cache.extend([row.token])
            self._take(row, chosen[row.number])

    def _take(self, row: _Slot, token: int) -> None:
        """Take the next token of a row's reply; it may be the last."""
        ask, sampling = row.ask, self._sampler.sampling
        if ask is None:
            return
        if token in sampling.stop_ids or ask.is_given_up():
            self._end(row)
            return
        row.token = token
        ask.said.append(token)
        ask.tell(token)
        if len(ask.said) >= sampling.max_tokens:
            self._end(row)

    def _end(self, row: _Slot, error: Exception | None = None) -> None:
        ask, row.ask = row.ask, None
        if ask:
            ask.audio = None
            ask.tell(error)
