"""Defaults from Voxtral's model card, combined with the user's settings.

Source: https://huggingface.co/mistralai/Voxtral-Mini-3B-2507; the card of Small says the same.
"""

from dataclasses import dataclass

TRAINED_TOKENS = 32_768  # context length that the model was trained on, audio included


@dataclass(frozen=True)
class ChatSampling:
    """How the tokens of a reply are sampled. Temperature 0 is greedy, whatever top_p is."""

    temperature: float
    top_p: float

    def but(self, temperature: float | None, top_p: float | None) -> "ChatSampling":
        """Return these values, replaced by those of the user that are not None."""
        return ChatSampling(
            self.temperature if temperature is None else temperature, self.top_p if top_p is None else top_p
        )


GREEDY = ChatSampling(temperature=0.0, top_p=1.0)
VOXTRAL = ChatSampling(temperature=0.2, top_p=0.95)


def sampling_for(model: str) -> ChatSampling:
    """Return the defaults for a model by its name on a server: the card's for a Voxtral, else greedy."""
    return VOXTRAL if is_voxtral(model) else GREEDY


def is_voxtral(model: str) -> bool:
    """Return whether a model on a server is a Voxtral, by its name."""
    return "voxtral" in model.lower()


def long_context(context_tokens: int) -> str:
    """Return a notice about prompts that are longer than those in training; empty for shorter ones."""
    if context_tokens <= TRAINED_TOKENS:
        return ""
    return (
        f"prompts of up to {context_tokens} tokens: Voxtral was trained on {TRAINED_TOKENS}, "
        "and replies to longer ones may get worse"
    )
