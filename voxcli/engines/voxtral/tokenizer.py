"""Text to token ids and back, the same for both tokenizers that a Voxtral checkpoint may be read with.

mistral-common's own one never makes a control token out of text; the plain one of `tokenizers`, which
transformers falls back to, does (`</s>` typed by a user would end the turn). `plain_ids` is the guard
that holds with both. This module imports neither: it is handed what transformers loaded.
"""

import codecs
import re
from collections.abc import Mapping
from typing import Any, Protocol

from voxcli.errors import ModelError


class Tokenizer(Protocol):
    """What the prompt and the reply need of a tokenizer."""

    @property
    def controls(self) -> Mapping[str, int]:
        """Ids of the control tokens by name: those that text must never become."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text, nothing put before or after it."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of UTF-8 that a token stands for; none for a control token."""
        ...


class TekkenTokenizer:
    """The tokenizer of mistral-common, as transformers wraps it (`MistralCommonBackend`)."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._tekken = backend.tokenizer.instruct_tokenizer.tokenizer
        names = (self._tekken.id_to_piece(token_id) for token_id in range(self._tekken.num_special_tokens))
        self.controls: dict[str, int] = {name: token_id for token_id, name in enumerate(names)}

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes(self._tekken.id_to_byte_piece(token_id))


class PlainTokenizer:
    """A byte-level tokenizer of the `tokenizers` library, as transformers wraps it."""

    def __init__(self, backend: Any, byte_of: Mapping[str, int]) -> None:
        """Take the wrapper and which byte each letter of its vocabulary stands for."""
        self._backend = backend
        self._byte_of = byte_of
        self.controls: dict[str, int] = {
            str(token): token_id for token_id, token in backend.added_tokens_decoder.items()
        }

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        token = self._backend.convert_ids_to_tokens(token_id)
        return b"" if token in self.controls else bytes(self._byte_of[letter] for letter in token)


def wrap(backend: Any) -> Tokenizer:
    """Return the tokenizer that transformers loaded, behind the protocol above.

    Raises:
        ModelError: it is of a kind that Voxtral never had.
    """
    inner: Any = getattr(backend, "tokenizer", None)
    if hasattr(inner, "instruct_tokenizer") and hasattr(inner.instruct_tokenizer.tokenizer, "id_to_byte_piece"):
        return TekkenTokenizer(backend)
    if not hasattr(backend, "added_tokens_decoder"):
        raise ModelError(
            f"the checkpoint's tokenizer ({type(backend).__name__}) is not one that Voxtral uses",
            hint="fetch the checkpoint again: voxcli models pull mini",
        )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: Any = bytes_to_unicode  # it carries no types
    return PlainTokenizer(backend, {letter: byte for byte, letter in letters().items()})


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return ids of text from outside, none of them a control token.

    The name of a control token in the text reaches the model as the characters that it is made of.

    Raises:
        ModelError: the tokenizer makes a control token of the text however it is cut.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair has no bytes
    control_ids = frozenset(tokenizer.controls.values())
    ids = tokenizer.encode(text)
    if control_ids.isdisjoint(ids):
        return ids
    ids = [token_id for piece in _cut(tokenizer, text) for token_id in tokenizer.encode(piece)]
    if not control_ids.isdisjoint(ids):
        raise ModelError("the tokenizer turns ordinary text into control tokens", hint="pip install 'voxcli[voxtral]'")
    return ids


def disarmed(tokenizer: Tokenizer, text: str) -> str:
    """Return the text with a space in each name of a control token, so that it is none: `[ INST]`."""
    return " ".join(_cut(tokenizer, text))


def _cut(tokenizer: Tokenizer, text: str) -> list[str]:
    """Cut the text after the first character of each name of a control token."""
    names = "|".join(re.escape(name) for name in sorted(tokenizer.controls, key=len, reverse=True) if len(name) > 1)
    cuts = [match.start() + 1 for match in re.finditer(names, text)]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


class TextStream:
    """Ids to text as they come; a character is given out when its last byte is there.

    Bytes that are no UTF-8 become U+FFFD. What is left of a character that was cut off at the end of
    the reply is never given out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """Return the text that this token completes; often one word, now and then nothing."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))
