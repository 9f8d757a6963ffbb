"""What Voxtral's model card says of its use, and how that meets the settings.

Source: https://huggingface.co/mistralai/Voxtral-Mini-3B-2507; the card of Small says the same.
"""

from dataclasses import dataclass

TRAINED_TOKENS = 32_768  # context length that the model was trained on, audio included


@dataclass(frozen=True)
class ChatSampling:
    """How a reply's tokens are chosen: at temperature 0 the likeliest each time, whatever top_p is."""

    temperature: float
    top_p: float

    def but(self, temperature: float | None, top_p: float | None) -> "ChatSampling":
        """Return this with the values that the user gave; None for those that were not."""
        return ChatSampling(
            self.temperature if temperature is None else temperature, self.top_p if top_p is None else top_p
        )


GREEDY = ChatSampling(temperature=0.0, top_p=1.0)
VOXTRAL = ChatSampling(temperature=0.2, top_p=0.95)


def sampling_for(model: str) -> ChatSampling:
    """Return the defaults for a model by the name that a server has for it: the card's for a Voxtral, else greedy."""
    return VOXTRAL if is_voxtral(model) else GREEDY


def is_voxtral(model: str) -> bool:
    """Return whether a server's name for a model is that of a Voxtral."""
    return "voxtral" in model.lower()


def long_context(context_tokens: int) -> str:
    """Return what a user should know of prompts of so many tokens; empty where there is nothing."""
    if context_tokens <= TRAINED_TOKENS:
        return ""
    return (
        f"prompts of up to {context_tokens} tokens: Voxtral was trained on {TRAINED_TOKENS}, "
        "and replies to longer ones may get worse"
    )
