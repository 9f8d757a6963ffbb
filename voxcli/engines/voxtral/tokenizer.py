"""Converts text to token ids and back, with either tokenizer that transformers loads for a Voxtral checkpoint.

The tokenizer of mistral-common never makes a control token out of text. The one of `tokenizers`, to which
transformers falls back, does: `</s>` typed by a user would end the turn. `plain_ids` is safe with both.
"""

import codecs
import re
from collections.abc import Mapping
from typing import Any, Protocol

from voxcli.errors import ModelError

CUT = " [...]"  # marks text that was cut
MOST_CHARACTERS_PER_TOKEN = 8  # English text has about 4.5.


class Tokenizer(Protocol):
    """A tokenizer as prompts and replies use it."""

    @property
    def controls(self) -> Mapping[str, int]:
        """Ids of the control tokens by name, which text must never become."""
        ...

    @property
    def version(self) -> str:
        """The version that decides the layout of tools: v7, v11, v13...; empty if it is not known."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text, without tokens before or after it."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token; empty for a control token."""
        ...


class TekkenTokenizer:
    """The tokenizer of mistral-common, as transformers wraps it (`MistralCommonBackend`)."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._tekken = backend.tokenizer.instruct_tokenizer.tokenizer
        names = (self._tekken.id_to_piece(token_id) for token_id in range(self._tekken.num_special_tokens))
        self.controls: dict[str, int] = {name: token_id for token_id, name in enumerate(names)}
        self.version = str(self._tekken.version.value)

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes(self._tekken.id_to_byte_piece(token_id))


class PlainTokenizer:
    """A byte-level tokenizer of the `tokenizers` library, as transformers wraps it."""

    version = ""  # The file that it is read from gives none.

    def __init__(self, backend: Any, byte_of: Mapping[str, int]) -> None:
        """Use a wrapper, and the byte of each letter of its vocabulary."""
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
    """Return a `Tokenizer` for one that transformers loaded.

    Raises:
        ModelError: it is not a tokenizer of Voxtral.
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

    letters: Any = bytes_to_unicode  # has no types
    return PlainTokenizer(backend, {letter: byte for byte, letter in letters().items()})


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return ids of untrusted text, none of them a control token.

    The name of a control token in the text reaches the model as its characters.

    Raises:
        ModelError: the tokenizer makes a control token of the text even if its name is cut.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair can't be encoded
    control_ids = frozenset(tokenizer.controls.values())
    ids = tokenizer.encode(text)
    if control_ids.isdisjoint(ids):
        return ids
    ids = [token_id for piece in _cut(tokenizer, text) for token_id in tokenizer.encode(piece)]
    if not control_ids.isdisjoint(ids):
        raise ModelError("the tokenizer turns ordinary text into control tokens", hint="pip install 'voxcli[voxtral]'")
    return ids


def shortened(tokenizer: Tokenizer, text: str, most: int) -> str:
    """Return untrusted text, cut and marked as cut if it has more than `most` tokens.

    Args:
        most: at least the tokens of `CUT`.
    """
    read = text[: MOST_CHARACTERS_PER_TOKEN * most]  # long text takes long to encode
    ids = plain_ids(tokenizer, read)
    if len(ids) <= most and len(read) == len(text):
        return text
    for length in range(most - len(plain_ids(tokenizer, CUT)), 0, -1):
        beginning = b"".join(map(tokenizer.token_bytes, ids[:length])).decode("utf-8", "ignore")
        if len(plain_ids(tokenizer, beginning + CUT)) <= most:  # the last token may be another beside the mark
            return beginning + CUT
    return CUT


def disarmed(tokenizer: Tokenizer, text: str) -> str:
    """Return the text with a space in each name of a control token: `[ INST]`."""
    return " ".join(_cut(tokenizer, text))


def _cut(tokenizer: Tokenizer, text: str) -> list[str]:
    """Cut the text after the first character of each name of a control token."""
    names = "|".join(re.escape(name) for name in sorted(tokenizer.controls, key=len, reverse=True) if len(name) > 1)
    cuts = [match.start() + 1 for match in re.finditer(names, text)]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


class TextStream:
    """Decodes ids to text one by one; a character is returned with its last byte.

    Invalid UTF-8 becomes U+FFFD. An incomplete character at the end of the reply is dropped.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """Return the text that this token completes: often a word, sometimes nothing."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))
