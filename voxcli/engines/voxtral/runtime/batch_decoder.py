"""Decodes many requests together, each in a slot of one KV cache.

    waiting -> encoded (several windows at once) -> prefilled into a free slot -> one token a step -> finished

A slot is a stretch of the cache's memory, and a prompt is prefilled into it as into a cache of its own, so
slots need no padding. A step feeds the last token of every slot and reads the weights once for all of them. A
slot is free for the next request as soon as its reply is finished (continuous batching).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from voxcli.engines.voxtral.device.demand import CHUNK_TOKENS, cache_bytes_per_token
from voxcli.engines.voxtral.runtime.kv_cache import SMALLEST_BUCKET, Cache
from voxcli.engines.voxtral.runtime.model import SharedModel, audio_tokens_per_window
from voxcli.engines.voxtral.runtime.sampler import Sampler, Sampling
from voxcli.errors import ModelError

ENCODED_TOGETHER = 8  # windows encoded at once: enough to keep a GPU busy; at most 1 GB of hidden states with Mini
ENCODED_ON_CPU = 1  # A CPU encodes 8 windows at once no faster than one by one.
SHARE_FOR_CACHE = 0.6  # share of the free memory for the cache; the encoder and the steps work in the rest


@dataclass(eq=False)
class Request:
    """A prompt, the state of its reply, and the callback that receives the tokens."""

    ids: Sequence[int]  # the whole prompt
    features: torch.Tensor | None  # mel spectrograms of the clip, (windows, mels, frames); None once encoded
    notify: Callable[[int | Exception | None], None]  # receives each token; at the end None, or the error
    is_cancelled: Callable[[], bool] = lambda: False  # checked for each token
    generated: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # tokens of the prompt that its slot already held
    encoder_calls: int = 0
    generations: int = 0
    audio: torch.Tensor | None = None  # embeddings of the clip, (tokens, hidden)
    keeps_audio: bool = False  # whether `audio` outlasts the reply, for a request that goes on from it
    clip: int = 0  # stands for the `[AUDIO]` of the clip in the cache; 0 until it is prefilled
    sampling: Sampling | None = None  # a greedy one; None for that of the decoder
    room: int = 0  # tokens that may follow the reply in its slot

    def continued(
        self,
        ids: Sequence[int],
        notify: Callable[[int | Exception | None], None],
        is_cancelled: Callable[[], bool],
        sampling: Sampling | None = None,
    ) -> "Request":
        """Return a request for a longer prompt with the same clip, which is not encoded again.

        What this finished request left in its slot is used again if no other request has taken the slot.
        """
        longer = Request(ids, None, notify, is_cancelled, audio=self.audio, clip=self.clip, sampling=sampling)
        longer.keeps_audio, longer.room = self.keeps_audio, max(0, self.room - (len(ids) - len(self.ids)))
        return longer


@dataclass(eq=False)
class _Slot:
    number: int
    cache: Cache
    request: Request | None = None
    token: int = 0  # fed in the next step


class BatchDecoder:
    """Decodes many requests with one Voxtral model. Calls must come from one thread at a time."""

    def __init__(
        self,
        model: SharedModel,
        sampling: Sampling,
        *,
        most: int,
        longest: int,
        free_bytes: Callable[[], int | None],
        is_out_of_memory: Callable[[Exception], bool],
        smallest_capacity: int = SMALLEST_BUCKET,
        encoded_together: int | None = None,
    ) -> None:
        """Start without requests. The cache is allocated for the first one.

        Args:
            sampling: applies to all replies. With a seed, a reply still depends on what is decoded beside it.
            most: number of slots; there are fewer where memory is short.
            longest: most tokens of prompt and reply that a slot ever holds.
            free_bytes: returns the free memory in bytes; None where it is unknown.
            smallest_capacity: tokens of a slot at first; doubled where a prompt needs more.
            encoded_together: number of windows encoded at once; None for what suits the device.
        """
        self.most = most
        self.steps = 0
        self._model = model
        self._sampler = Sampler(sampling, model.device)
        self._longest, self._smallest_capacity = longest, smallest_capacity
        self._free_bytes, self._is_out_of_memory = free_bytes, is_out_of_memory
        self.device: str = model.device.type
        self._clips = count(1)
        self._waiting: deque[Request] = deque()
        self._slots: list[_Slot] = []
        self._cache: Cache | None = None  # all slots
        self._capacity = 0  # tokens of one slot
        # Both limits are halved each time memory runs out.
        self._slot_limit = most
        self._encoded_together = encoded_together or (ENCODED_ON_CPU if self.device == "cpu" else ENCODED_TOGETHER)

    @property
    def is_idle(self) -> bool:
        """Whether no request is waiting or being decoded."""
        return not self._waiting and not self._busy_slots()

    @property
    def slots(self) -> int:
        """Number of slots in the cache; 0 before the first request."""
        return len(self._slots)

    @property
    def waiting(self) -> int:
        """Number of requests without a slot."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request."""
        if request.is_cancelled():
            request.notify(None)
            return
        try:
            self._model.check_prompt(request.ids, request.features, len(request.ids) + 1, request.audio)
        except ModelError as error:
            request.notify(error)
        else:
            self._waiting.append(request)

    @torch.inference_mode()
    def advance(self) -> None:
        """Start waiting requests in free slots, then generate the next token of every running one.

        When memory runs out, the number of slots is halved and running requests are requeued with their
        tokens. A request that does not fit alone fails.
        """
        if self.device == "cuda":
            torch.cuda.set_device(self._model.device)  # the current GPU is a setting of each thread
        try:
            self._start_waiting()
            self._step()
        except Exception as error:
            if not self._is_out_of_memory(error):
                raise
            self._requeue_all()
            if self._slot_limit > 1 or self._encoded_together > 1:
                self._slot_limit = max(1, self._slot_limit // 2)
                self._encoded_together = max(1, self._encoded_together // 2)
            else:
                self._waiting.popleft().notify(error)
                self._slot_limit = self.most

    def fail(self, error: Exception) -> None:
        """Fail all running and waiting requests."""
        for slot in self._busy_slots():
            self._finish(slot, error)
        while self._waiting:
            self._waiting.popleft().notify(error)

    def _busy_slots(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.request]

    def _requeue_all(self) -> None:
        """Requeue running requests at the front, keeping their tokens, and free the cache."""
        for slot in reversed(self._busy_slots()):
            if slot.request:
                self._waiting.appendleft(slot.request)
        self._slots, self._cache, self._capacity = [], None, 0

    def _start_waiting(self) -> None:
        while left := self._next_group():
            try:
                self._encode([request for request in left if request.features is not None])
                while left:
                    self._prefill(left[0])
                    left.popleft()
            except Exception:
                self._waiting.extendleft(reversed(left))
                raise

    def _next_group(self) -> deque[Request]:
        """Dequeue the requests that are started next: as many as have a slot and are encoded together."""
        group: deque[Request] = deque()
        windows = 0
        while self._waiting and windows < self._encoded_together:
            request = self._waiting[0]
            if request.is_cancelled():
                self._waiting.popleft().notify(None)
                continue
            if not self._has_slot(request, len(group)):
                break
            windows += 0 if request.features is None else len(request.features)
            group.append(self._waiting.popleft())
        return group

    def _has_slot(self, request: Request, taken: int) -> bool:
        """Return whether a slot is free for a request, after `taken` others.

        Slots have one length. When all are free, they are allocated anew if a request needs longer ones, or if
        shorter ones would do and leave room for more; until then such requests wait.
        """
        live = self._busy_slots()
        begun = [slot.request for slot in live if slot.request]
        wanted = max(self._capacity_for(each) for each in (*begun, *self._waiting))
        if not begun and not taken and wanted != self._capacity:
            self._allocate(wanted)
        is_too_long = self._capacity_for(request) > self._capacity
        if is_too_long or (wanted < self._capacity and len(self._slots) < self._slot_limit):
            return False
        return len(live) + taken < len(self._slots)

    def _capacity_for(self, request: Request) -> int:
        """Return the tokens that the slot of a request must hold, rounded up to one of a few lengths."""
        needed = len(request.ids) + self._sampling_of(request).max_tokens + request.room
        capacity = self._smallest_capacity
        while capacity < needed:
            capacity *= 2
        return max(needed, min(capacity, self._longest))

    def _allocate(self, capacity: int) -> None:
        self._slots, self._cache = [], None  # freed first: the old and the new ones together may not fit
        slots, free = self._slot_limit, self._free_bytes()
        if free is not None:
            token_bytes = cache_bytes_per_token(self._model.config.text_config, self._model.text.dtype.itemsize)
            slots = max(1, min(slots, int(SHARE_FOR_CACHE * free) // (token_bytes * capacity)))
        self._cache = self._model.text.allocate(capacity, capacity, slots)
        parts = [self._cache.part(number * capacity, capacity) for number in range(slots)]
        self._slots, self._capacity = [_Slot(number, part) for number, part in enumerate(parts)], capacity

    def _encode(self, requests: Sequence[Request]) -> None:
        """Encode the clips of requests, several windows at once."""
        if not requests:
            return
        windows = torch.cat([request.features for request in requests if request.features is not None])
        embeddings = torch.cat([self._model.encode(part) for part in torch.split(windows, self._encoded_together)])
        tokens = audio_tokens_per_window(self._model.config.audio_config)
        for request in requests:
            length = tokens * (0 if request.features is None else len(request.features))
            request.audio, embeddings = embeddings[:length].clone(), embeddings[length:]
            request.features = None
            request.encoder_calls += 1

    def _prefill(self, request: Request) -> None:
        """Prefill a prompt and the tokens generated so far into the free slot with the longest common prefix."""
        request.clip = request.clip or -next(self._clips)  # an id for the `[AUDIO]` of this clip alone
        ids = [*request.ids, *request.generated]
        tokens = [request.clip if token_id == self._model.audio_id else token_id for token_id in ids]
        free = [slot for slot in self._slots if not slot.request]
        slot = max(free, key=lambda slot: (slot.cache.common(tokens), -slot.number))
        start = min(slot.cache.common(tokens), len(tokens) - 1)
        slot.cache.rewind(start)
        request.cached_tokens = start
        for chunk in self._model.embed(ids[start:], request.audio).split(CHUNK_TOKENS):
            hidden = self._model.text.prefill(chunk, start, slot.cache)
            slot.cache.extend(tokens[start : start + len(chunk)])
            start += len(chunk)
        request.generations += 1
        slot.request = request
        logits = self._model.text.head(hidden)
        self._append_token(slot, int(logits.argmax(-1) if request.sampling else self._sampler.choose(logits)))

    def _step(self) -> None:
        """Generate one token for every busy slot. Free slots between busy ones are computed too, and ignored."""
        live = self._busy_slots()
        if not live or self._cache is None:
            return
        slots = self._slots[: live[-1].number + 1]
        longest = max(slot.cache.length for slot in live) + 1
        # On a GPU, few shapes are faster (they can be captured); on a CPU, reading less of the cache is.
        extent = longest if self.device == "cpu" else min(-(-longest // 256) * 256, self._capacity)
        fed = torch.tensor([[slot.token for slot in slots], [slot.cache.length for slot in slots]])
        tokens, positions = fed.to(self._model.device)
        logits = self._model.text.step_slots(tokens, positions, self._cache, extent)
        chosen: list[int] = self._sampler.sample_each(logits).tolist()  # the only synchronisation with the device
        greedy = [slot for slot in live if slot.request and slot.request.sampling]
        for slot in greedy:
            chosen[slot.number] = int(logits[slot.number].argmax())
        self.steps += 1
        for slot in live:
            slot.cache.extend([slot.token])
            self._append_token(slot, chosen[slot.number])

    def _sampling_of(self, request: Request) -> Sampling:
        return request.sampling or self._sampler.sampling

    def _append_token(self, slot: _Slot, token: int) -> None:
        """Append a generated token to the reply of a slot, which it may finish."""
        request = slot.request
        if request is None:
            return
        sampling = self._sampling_of(request)
        if token in sampling.stop_ids or request.is_cancelled():
            self._finish(slot)
            return
        slot.token = token
        request.generated.append(token)
        request.notify(token)
        if len(request.generated) >= sampling.max_tokens:
            self._finish(slot)

    def _finish(self, slot: _Slot, error: Exception | None = None) -> None:
        request, slot.request = slot.request, None
        if request:
            request.audio = request.audio if request.keeps_audio else None
            request.notify(error)
