"""What goes into the text model for a prompt: embeddings of its ids, those of the clip in place of `[AUDIO]`.

Knows nothing of caches, and of a prompt no more than which of its ids stand for audio.
"""

from collections.abc import Sequence
from typing import Any

import torch

from voxcli.engines.voxtral.device import demand
from voxcli.engines.voxtral.runtime.encoder import audio_tokens_per_window
from voxcli.engines.voxtral.runtime.text_model import TextModel
from voxcli.errors import ModelError

CHUNK_TOKENS = demand.CHUNK_TOKENS


def check(config: Any, ids: Sequence[int], features: torch.Tensor | None, capacity: int) -> int:
    """Return the id of `[AUDIO]`.

    Args:
        config: a `VoxtralConfig`.
        features: mel spectrograms of the clip, (windows, mels, frames); None without a clip.
        capacity: most tokens of prompt and reply.

    Raises:
        ModelError: ids and features do not fit together, or the prompt does not fit into `capacity`.
    """
    expected = 0 if features is None else features.shape[0] * audio_tokens_per_window(config.audio_config)
    audio_id = int(config.audio_token_id)
    found = ids.count(audio_id)
    if found != expected:
        raise ModelError(f"the prompt has {found} audio tokens for {expected} audio embeddings")
    if not 0 < len(ids) < capacity:
        raise ModelError(f"a prompt of {len(ids)} tokens and a reply don't fit into a cache of {capacity}")
    return audio_id


def embeddings(text: TextModel, ids: Sequence[int], audio: torch.Tensor | None, audio_id: int) -> Any:
    """Return embeddings, (n, hidden), of ids; `audio` has one for each `[AUDIO]` among them, (m, hidden)."""
    found = text.embed(torch.tensor(list(ids), device=text.device))
    if audio is not None:
        places = [place for place, token_id in enumerate(ids) if token_id == audio_id]
        found.index_copy_(0, torch.tensor(places, device=text.device), audio.to(found.dtype))
    return found
