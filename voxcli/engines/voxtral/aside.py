"""Asks the model what it understood of a clip: after its reply, on the cache as the reply left it.

    ...[INST][BEGIN_AUDIO][AUDIO]*n[/INST]{reply} </s>[INST]{INSTRUCTION}[/INST]{line}
                                                 ^ the cache is rewound to here afterwards

The clip is in the cache, so nothing is encoded, and only the instruction and the line are fed.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from voxcli.core.understanding import INSTRUCTION, LINE_TOKENS
from voxcli.engines.voxtral.prompt import PromptWriter
from voxcli.engines.voxtral.tokenizer import TextStream, Tokenizer
from voxcli.errors import ModelError

if TYPE_CHECKING:
    from voxcli.engines.voxtral.runtime.decoder import Decoder
    from voxcli.engines.voxtral.runtime.sampler import Sampling


class Aside:
    """A question to the model that leaves no trace in the cache."""

    def __init__(self, writer: PromptWriter, tokenizer: Tokenizer, sampling: "Callable[..., Sampling]") -> None:
        """Write the instruction.

        Args:
            sampling: makes a `runtime.sampler.Sampling`, which needs torch.
        """
        self._tokenizer = tokenizer
        self.audio_id = writer.audio
        self.ids = writer.follow_up(INSTRUCTION)
        # Any control token ends the line: a call of a tool, for one, is no part of it.
        self.sampling = sampling(LINE_TOKENS, frozenset(tokenizer.controls.values()))
        self.room = 1 + len(self.ids) + LINE_TOKENS  # tokens beyond a reply, its last one included

    def ask(
        self, decoder: "Decoder", errors: Callable[[int], AbstractContextManager[None]]
    ) -> Generator[str, None, None]:
        """Yield the line in deltas, first an empty one when the instruction is fed; rewind the cache at the end.

        Raises:
            ModelError: the pass failed.
        """
        length, text = decoder.cached, TextStream(self._tokenizer)
        try:
            with errors(length):
                length = decoder.append(self.ids)
                yield ""
                for token_id in decoder.stream(self.sampling, threading.Event()):
                    yield text.add(token_id)
        finally:
            decoder.rewind(length)


def gone() -> ModelError:
    """Return the error of a clip that is not in the cache any more."""
    return ModelError(
        "the audio of that turn is not in the cache any more",
        hint='press w while its reply is spoken, or set understood to "show"',
    )
