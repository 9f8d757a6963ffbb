"""Opens the model that answers: SmolLM2, which comes with the engine, or a GGUF file of the user's choice."""

import os
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxcli.core.protocols import PassReport
from voxcli.engines.embedded.chat_template import TemplatePrompts
from voxcli.engines.embedded.gguf import Header, check_answers, read_header
from voxcli.engines.embedded.libraries import chosen_files
from voxcli.engines.embedded.llama import CONTEXT_TOKENS, LlamaCpp
from voxcli.engines.embedded.prompts import TURNS_SHOWN, ChatModel, Prompt, Prompts, SmolLM2Prompts
from voxcli.engines.openai.reasoning import ReasoningFilter
from voxcli.engines.voxtral.device.ram import ram_free_bytes
from voxcli.errors import ModelError

SHIPPED = "SmolLM2-135M-Instruct"
# From 1 B parameters on, a model is shown the whole conversation and answers in any language. The models that are
# called 1 B have 0.99 (Gemma 3) to 1.24 (Llama 3.2) billion.
LARGE_PARAMETERS = 950_000_000
COMPUTE_BYTES = 300_000_000  # estimate of what llama.cpp takes beside weights and cache


@dataclass(frozen=True)
class AnswerModel:
    """A GGUF file that answers."""

    path: Path
    is_shipped: bool  # whether it is the one that comes with the engine


@dataclass(frozen=True)
class Answering:
    """An open answering model."""

    model: ChatModel
    prompts: Prompts
    is_large: bool


def open_answering(chosen: AnswerModel, sampling: dict[str, Any], context_tokens: int) -> Answering:
    """Load an answering model.

    Args:
        sampling: max_tokens, temperature and top_p, by llama.cpp's names.
        context_tokens: longest prompt of a chosen model; it is shortened to what the model was trained on.

    Raises:
        ModelError: the file can't be loaded, does not fit in memory, or holds no model to talk with.
    """
    if chosen.is_shipped:
        return Answering(LlamaCpp(chosen.path, sampling), SmolLM2Prompts(), is_large=False)
    header = read_header(chosen.path)
    check_answers(chosen.path, header)
    is_large = header.parameters >= LARGE_PARAMETERS
    room = min(context_tokens + sampling["max_tokens"], header.context_tokens or CONTEXT_TOKENS)
    check_memory(chosen.path, header, room)
    # A large model is read from memory for every token, which one core does too slowly.
    threads = os.cpu_count() or 1 if is_large else 1
    with chosen_files(is_chosen=True):
        model = LlamaCpp(chosen.path, sampling, context_tokens=room, threads=threads)
    shown = None if is_large else TURNS_SHOWN
    prompts = TemplatePrompts(model, max(room - sampling["max_tokens"], room // 2), shown)
    return Answering(ReasoningFiltered(model), prompts, is_large)


def check_memory(
    path: Path, header: Header, context_tokens: int, free: Callable[[], int | None] = ram_free_bytes
) -> None:
    """Raise ModelError if a model and its cache don't fit in the memory that is free."""
    needed, there = header.file_bytes + header.cache_bytes(context_tokens) + COMPUTE_BYTES, free()
    if there is not None and needed > there:
        raise ModelError(
            f"{path.name} needs {needed / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are free",
            hint="choose a smaller model or format; `voxcli doctor` recommends one",
        )


class ReasoningFiltered:
    """A text model whose reasoning, as in `<think>...</think>`, is left out of its replies."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model

    def answer(self, prompt: Prompt, interrupt: threading.Event) -> Generator[str, None, PassReport]:
        """Yield the reply in deltas; see `LlamaCpp.answer`."""
        reasoning = ReasoningFilter()
        deltas = self._model.answer(prompt, interrupt)
        try:
            while True:
                if text := reasoning.feed(next(deltas)):
                    yield text
        except StopIteration as end:
            report: PassReport = end.value
        finally:
            deltas.close()
        if text := reasoning.finish():
            yield text
        return report

    def read_ahead(self, beginning: Prompt) -> None:
        """Prefill the beginning of the next prompt."""
        self._model.read_ahead(beginning)
