"""The forward pass of Voxtral's text model over a `Cache`, with the weights that transformers loaded.

    embed -> each layer: norm, qkv, rotation, cache, attention, output; norm, gate and up, down -> norm -> head

Computes the same as `LlamaForCausalLM`. A decode step is a fixed sequence of kernels that reads no value back,
so it can be captured. Projections of the same input are fused into one matrix. Checkpoints with parts that this
pass does not compute are refused.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from voxcli.engines.voxtral.runtime import attention, kernel_trials
from voxcli.engines.voxtral.runtime.attention import Attend
from voxcli.engines.voxtral.runtime.kv_cache import SMALLEST_BUCKET, Cache
from voxcli.errors import ModelError

STATIC_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # others change with the length of the prompt


class _Layer(NamedTuple):
    """The modules of a layer. Norms are pairs of weight and epsilon."""

    input_norm: tuple[torch.Tensor, float]
    qkv: nn.Module
    output: nn.Module
    mlp_norm: tuple[torch.Tensor, float]
    gate_up: nn.Module
    down: nn.Module


class TextModel:
    """The text model of one `VoxtralForConditionalGeneration`."""

    def __init__(self, model: Any) -> None:
        """Take over a model, fusing projections in place. transformers' own forward pass keeps working.

        Raises:
            ModelError: the text model has parts that this pass does not compute.
        """
        text, config = model.model.language_model, model.config.text_config
        check(text, config)
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.dtype, self.device = text.embed_tokens.weight.dtype, text.embed_tokens.weight.device
        self.modules, self._model = text, model  # the modules of transformers
        self._norm = text.norm.weight, float(text.norm.variance_epsilon)
        for layer in text.layers:
            fuse(layer.self_attn, "qkv_proj", ("q_proj", "k_proj", "v_proj"))
            fuse(layer.mlp, "gate_up_proj", ("gate_proj", "up_proj"))
        self.refresh()
        shape = self.heads, self.kv_heads, self.head_dim
        self.attention = attention.best(*shape, self.dtype, self.device)  # Used by `prefill_anywhere`.
        self.kernel = kernel_trials.attention_kernel(*shape, self.dtype, self.device)
        self.write = kernel_trials.cache_write(self.kv_heads, self.head_dim, self.dtype, self.device)

    def refresh(self) -> None:
        """Look up the modules again, after some were replaced by quantized ones."""
        self._layers = [
            _Layer(
                (layer.input_layernorm.weight, float(layer.input_layernorm.variance_epsilon)),
                layer.self_attn.qkv_proj,
                layer.self_attn.o_proj,
                (layer.post_attention_layernorm.weight, float(layer.post_attention_layernorm.variance_epsilon)),
                layer.mlp.gate_up_proj,
                layer.mlp.down_proj,
            )
            for layer in self.modules.layers
        ]

    @torch.inference_mode()  # like every pass: compiled code accepts only inference tensors or only others
    def allocate(self, capacity: int, smallest_bucket: int = SMALLEST_BUCKET, slots: int = 1) -> Cache:
        """Return an empty cache for `capacity` tokens in each of its slots, which lie one after the other.

        Args:
            smallest_bucket: length of the shortest bucket in tokens.
            slots: number of sequences that `step_slots` decodes together.

        Raises:
            RuntimeError, MemoryError: the memory could not be allocated.
        """
        return Cache(
            layers=len(self._layers),
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            capacity=slots * capacity,
            rotation=self._rotations(capacity),
            smallest_bucket=smallest_bucket,
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, (n, hidden), of ids, (n,)."""
        embedded: torch.Tensor = self.modules.embed_tokens(ids)
        return embedded

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits, (..., vocabulary), for last hidden states, (..., hidden)."""
        logits: torch.Tensor = self._model.lm_head(hidden)
        return logits

    def prefill(self, embeddings: torch.Tensor, start: int, cache: Cache) -> torch.Tensor:
        """Feed embeddings, (n, hidden), at positions from `start` on; return the last hidden state, (hidden,)."""
        count = embeddings.shape[0]
        positions = cache.positions[start : start + count]
        rotation = cache.rotation[:, start : start + count]
        attend = attention.causal(start, count, embeddings, self.kernel)
        attend_last = self._decoding(start + count, None)
        last = cache.positions[count - 1 : count]
        hidden = self._through_layers(embeddings, positions, rotation, cache, attend, (attend_last, last))
        return self._normed(hidden[0], self._norm)

    def prefill_anywhere(
        self, embeddings: torch.Tensor, start: torch.Tensor, last: torch.Tensor, cache: Cache, extent: int
    ) -> torch.Tensor:
        """Feed embeddings, (n, hidden), as `prefill` does, without reading a value back, so that it can be captured.

        Embeddings after `last` are padding. Their keys and values are written behind it, where nothing attends
        to them before they are overwritten.

        Args:
            start: position of the first embedding, (1,). The cache must have room for all n.
            last: index of the last embedding that is not padding, (1,).
            extent: number of positions of the cache that attention reads, at least `start` + n.

        Returns:
            The last hidden state, (hidden,), at `last`.
        """
        count = embeddings.shape[0]
        positions = cache.positions[:count] + start

        def attention_at(places: torch.Tensor) -> Attend:
            def attend(queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
                keys, values = stored[:, :, :extent]
                out = self.attention(queries, keys, values, places)
                return out.reshape(queries.shape[1], self.heads * self.head_dim)

            return attend

        rotation = cache.rotation.index_select(1, positions)
        attend, attend_last = attention_at(positions), attention_at(positions.index_select(0, last))
        hidden = self._through_layers(embeddings, positions, rotation, cache, attend, (attend_last, last))
        return self._normed(hidden[0], self._norm)

    def step(
        self,
        token: torch.Tensor,
        position: torch.Tensor,
        cache: Cache,
        extent: int,
        *,
        masked: bool,
        through: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Feed one token and return the logits, (vocabulary,), of the next.

        Reads no value back and allocates the same each time: with `masked`, it can be captured once for
        each bucket, and replayed after new values were copied into `token` and `position`.

        Args:
            token: id, (1, 1).
            position: of the token, (1,); its key and value are written there.
            extent: number of positions of the cache that attention reads.
            masked: whether `extent` may include later positions, which are then masked.
            through: the compiled `decode_layer`; None for the plain one.
        """
        visible = cache.positions[:extent] <= position if masked else None
        rotation = cache.rotation.index_select(1, position)
        hidden = self.embed(token.view(1))
        for layer, stored in zip(self._layers, cache.layers, strict=True):
            hidden = (through or self.decode_layer)(layer, stored, hidden, position, rotation, extent, visible)
        return self.head(self._normed(hidden[0], self._norm))

    def step_slots(self, tokens: torch.Tensor, positions: torch.Tensor, cache: Cache, extent: int) -> torch.Tensor:
        """Feed one token to each of the first slots of a cache; return the next tokens' logits, (slots, vocabulary).

        Reads no value back, as `step`, so it can be captured for each number of slots.

        Args:
            tokens: ids, (slots,).
            positions: of the tokens within their slots, (slots,); their keys and values are written there.
            extent: number of positions of each slot that attention reads; those after the token's own are masked.
        """
        count, capacity = tokens.shape[0], cache.positions.shape[0]
        places = positions + capacity * torch.arange(count, device=self.device)
        attend = attention.of_slots(positions, capacity, extent, self.dtype, self.kernel)
        rotation = cache.rotation.index_select(1, positions)
        hidden = self.embed(tokens)
        for layer, stored in zip(self._layers, cache.layers, strict=True):
            hidden = self._through(layer, stored, hidden, places, rotation, attend)
        return self.head(self._normed(hidden, self._norm))

    def _through_layers(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        rotation: torch.Tensor,
        cache: Cache,
        attend: Attend,
        final: tuple[Attend, torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """Return the hidden states of all tokens, or of some after the last layer.

        Args:
            attend: the attention of all tokens.
            final: the attention in the last layer, and the indices of the tokens whose hidden states are wanted;
                of the others, the last layer only writes keys and values.
        """
        *layers, top = zip(self._layers, cache.layers, strict=True)
        for layer, stored in layers:
            hidden = self._through(layer, stored, hidden, positions, rotation, attend)
        attend, only = final or (attend, None)
        return self._through(*top, hidden, positions, rotation, attend, only)

    def _through(
        self,
        layer: _Layer,
        stored: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        rotation: torch.Tensor,
        attend: Attend,
        only: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the hidden states of tokens after a layer: of all, or of those whose indices are in `only`."""
        count, turned = hidden.shape[0], self.heads + self.kv_heads
        cos, sin = rotation
        qkv = layer.qkv(self._normed(hidden, layer.input_norm))
        qkv = qkv.view(count, turned + self.kv_heads, self.head_dim).transpose(0, 1)
        unturned = qkv[:turned]  # queries and keys; `sin` has the sign of the negated half
        rotated = torch.addcmul(unturned * cos, unturned.roll(self.head_dim // 2, -1), sin)
        both = torch.cat([rotated[self.heads :], qkv[turned:]]).view(2, self.kv_heads, count, self.head_dim)
        self.write(stored, positions, both)
        queries = rotated[: self.heads]
        if only is not None:
            queries, hidden = queries.index_select(1, only), hidden.index_select(0, only)
        hidden = hidden + layer.output(attend(queries, stored))
        gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, -1)
        hidden = hidden + layer.down(F.silu(gate) * up)
        return hidden  # noqa: RET504 - modules are typed as returning Any

    def decode_layer(
        self,
        layer: _Layer,
        stored: torch.Tensor,
        hidden: torch.Tensor,
        position: torch.Tensor,
        rotation: torch.Tensor,
        extent: int,
        visible: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the hidden state of one token after a layer. One compilation serves all layers."""
        return self._through(layer, stored, hidden, position, rotation, self._decoding(extent, visible))

    def _decoding(self, extent: int, visible: torch.Tensor | None) -> Attend:
        """Return the attention of one token. Queries that share a KV head form one matrix, so the head is read once."""
        group = self.heads // self.kv_heads

        def attend(queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
            keys, values = stored[:, :, :extent]
            rows = queries.reshape(self.kv_heads, group, self.head_dim)
            if visible is None:
                out = self.kernel(rows[None], keys[None], values[None])
            else:
                scores = torch.matmul(rows * self.head_dim**-0.5, keys.transpose(1, 2)).float()
                weights = scores.masked_fill(~visible, float("-inf")).softmax(-1).to(values.dtype)
                out = torch.matmul(weights, values)
            return out.reshape(1, self.heads * self.head_dim)

        return attend

    def _normed(self, hidden: torch.Tensor, norm: tuple[torch.Tensor, float]) -> torch.Tensor:
        weight, epsilon = norm
        return F.rms_norm(hidden, weight.shape, weight, epsilon)

    def _rotations(self, count: int) -> torch.Tensor:
        """Return cosines and signed sines, (2, count, head_dim), from the model's own rotary module."""
        positions = torch.arange(count, device=self.device)
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        cos, sin = self.modules.rotary_emb(like, positions[None])
        half = self.head_dim // 2
        return torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)])


def check(text: Any, config: Any) -> None:
    """Raise ModelError for a text model that `TextModel` would compute wrongly."""
    if type(text).__name__ != "LlamaModel":
        raise _unknown(f"it is a {type(text).__name__}, not a LlamaModel")
    rotation = getattr(text.rotary_emb, "rope_type", "?")
    wrong = {
        f"its activation is {config.hidden_act}, not silu": config.hidden_act != "silu",
        "its projections have biases": config.attention_bias or config.mlp_bias,
        "its attention uses a sliding window": getattr(config, "sliding_window", None) is not None,
        f"its rotary embedding is of the type {rotation}": rotation not in STATIC_ROTATIONS,
        "its rotary embedding covers a part of a head": 2 * text.rotary_emb.inv_freq.numel() != config.head_dim,
        "its heads do not share keys evenly": config.num_attention_heads % config.num_key_value_heads != 0,
        "its projections are not plain matrices": not all(_is_plain(layer) for layer in text.layers),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise _unknown(what)


def _unknown(what: str) -> ModelError:
    return ModelError(
        f"the checkpoint's text model can't be run: {what}",
        hint="use a checkpoint of the Voxtral-2507 family: voxcli models pull mini",
    )


def _is_plain(layer: Any) -> bool:
    parts = (layer.self_attn, ("q_proj", "k_proj", "v_proj")), (layer.mlp, ("gate_proj", "up_proj"))
    return all(
        hasattr(owner, fused) or all(type(getattr(owner, name, None)) is nn.Linear for name in names)
        for (owner, names), fused in zip(parts, ("qkv_proj", "gate_up_proj"), strict=True)
    )


@torch.no_grad()
def fuse(owner: Any, name: str, parts: tuple[str, ...]) -> None:
    """Fuse linear maps of one input into `owner.name`; the weights of the parts become views of its weight.

    Memory grows by the size of the fused matrix meanwhile. Does nothing where the parts are fused already.
    """
    if hasattr(owner, name):
        return
    weights = [getattr(owner, part).weight for part in parts]
    joined: Any = torch.cat(weights)
    fused = nn.Linear(joined.shape[1], joined.shape[0], bias=False, device="meta")
    fused.weight = nn.Parameter(joined, requires_grad=False)
    for weight, view in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
        weight.data = view
    setattr(owner, name, fused)


def fused_parts(text: Any) -> Iterator[tuple[Any, str]]:
    """Yield (owner, name) of the projections that `TextModel` fused.

    They are views of the fused weights and keep these in memory. Code that replaces the fused modules must
    delete them with `delattr(owner, name)`, after which transformers' own forward pass no longer works.
    """
    for layer in text.layers:
        yield from ((layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj"))
        yield from ((layer.mlp, name) for name in ("gate_proj", "up_proj"))
