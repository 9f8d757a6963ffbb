"""Describes voices, and chooses one by its name, id or language."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from voxcli.errors import ConfigError


@dataclass(frozen=True)
class Voice:
    """An installed voice."""

    kind: str  # "pyttsx3" or "piper"
    name: str
    id: str  # The driver's id, or a file's path.
    languages: tuple[str, ...] = ()  # As the driver spells them, for example "en-us" or "en_US".
    is_default: bool = False  # The voice that its kind uses where none is named.

    @property
    def setting(self) -> str:
        """The value of `--voice` that selects this voice."""
        return f"{self.kind}:{self.name}"


def choose(wanted: str, voices: Sequence[Voice]) -> Voice:
    """Return the voice whose name, id or language is `wanted`, else the first whose name or id contains it.

    Raises:
        ConfigError: there is no such voice; the hint suggests similar names.
    """
    folded = wanted.casefold()
    names = [(voice.name.casefold(), voice.id.casefold()) for voice in voices]
    for voice, known in zip(voices, names, strict=True):
        if folded in known:
            return voice
    for voice in voices:
        if folded.replace("_", "-") in (language.casefold().replace("_", "-") for language in voice.languages):
            return voice
    for voice, known in zip(voices, names, strict=True):
        if any(folded in name for name in known):
            return voice
    by_name = {voice.name.casefold(): voice.name for voice in voices}
    near = [by_name[name] for name in difflib.get_close_matches(folded, by_name, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "voxcli voices"
    raise ConfigError(f"there is no voice named {wanted}", hint=hint)
