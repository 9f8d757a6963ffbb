"""Says how many tokens a prompt may have, what it keeps free for tools, and what to do about one that is too long."""

from dataclasses import dataclass

from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.errors import AudioInputError, ConfigError

MOST_TOOL_TOKENS = 2048  # kept free for calls and results; about 8 kB of English


@dataclass(frozen=True)
class PromptLimits:
    """Lengths of prompts in tokens, and of the windows in which the audio encoder takes a clip."""

    model: str  # its name in messages
    room: int  # tokens of a prompt from which old turns were dropped
    most: int  # tokens that the model takes beside a reply
    window_tokens: int
    window_seconds: float

    def tool_tokens(self, session: Session) -> int:
        """Return the tokens kept free for calls and results, so that the cache need not grow; 0 without tools."""
        return min(MOST_TOOL_TOKENS, self.room // 4) if session.tools else 0

    def tool_room(self, session: Session, prompt_tokens: int) -> int:
        """Return the most tokens that calls and results may add to a prompt; 0 without tools."""
        tokens = self.tool_tokens(session)
        return max(tokens, self.room - prompt_tokens) if tokens else 0

    def check(self, session: Session, utterance: Utterance, prompt_tokens: int, audio_tokens: int) -> None:
        """Check the length of a prompt, of which `audio_tokens` are the clip's.

        Raises:
            AudioInputError: a shorter clip would fit.
            ConfigError: none would.
        """
        text_tokens, most = prompt_tokens - audio_tokens, self.most - self.tool_tokens(session)
        if prompt_tokens <= most:
            return
        windows = (most - text_tokens) // self.window_tokens
        if utterance.clip is None or windows < 1:
            raise ConfigError(
                f"the text beside the audio has {text_tokens} tokens, the model takes {most}",
                hint="shorten --instructions or --prompt" + (", or give fewer tools" if session.tools else ""),
            )
        longest = windows * self.window_seconds
        raise AudioInputError(
            f"the recording has {utterance.clip.seconds:.1f} s, {self.model} takes up to {longest:.0f} s at once",
            hint="cut it into shorter pieces",
        )
