"""The kinds of value that settings have: what is allowed, and how it is told."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

DEFAULT_INSTRUCTIONS = (
    "You are a voice assistant. Answer in one or two short spoken sentences, without lists, markup or emoji."
)
INSTRUCTIONS_CHARACTERS = 16_384  # about 4,000 tokens, half of the default context

LANGUAGES = (  # ISO 639-1 codes of the languages that Whisper knows, as a regular expression
    "af|am|ar|as|az|ba|be|bg|bn|bo|br|bs|ca|cs|cy|da|de|el|en|es|et|eu|fa|fi|fo|fr|gl|gu|ha|he|hi|hr|ht|"
    "hu|hy|id|is|it|ja|ka|kk|km|kn|ko|la|lb|ln|lo|lt|lv|mg|mi|mk|ml|mn|mr|ms|mt|my|ne|nl|nn|no|oc|pa|pl|"
    "ps|pt|ro|ru|sa|sd|si|sk|sl|sn|so|sq|sr|su|sv|sw|ta|te|tg|th|tk|tl|tr|tt|uk|ur|uz|vi|yi|yo|zh"
)


@dataclass(frozen=True)
class Allowed:
    """Describes the allowed values of a setting whose constraints don't say it."""

    text: str


WholeNumber = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Truth = Annotated[bool, Field(strict=True), Allowed("true or false; a variable may also say yes, no, 1 or 0")]
ModelName = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]+$"),
    Allowed("mini, small, a model id such as mistralai/Voxtral-Mini-3B-2507, or the path of a folder"),
]
ComputeDevice = Annotated[
    str,
    Field(pattern=r"^(auto|cuda|cuda:[0-9]{1,3}|mps|cpu)$"),
    Allowed("auto, cuda, cuda:N such as cuda:1, mps or cpu"),
]
VoiceName = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$", max_length=2048),
    Allowed("auto, neural, pyttsx3, piper:NAME, openai:URL#NAME or a name that `voxcli voices` lists"),
]
PersonaChoice = Annotated[
    str,
    Field(pattern=r"^([A-Za-z0-9_-]{1,32}(:[^\x00-\x1f\x7f]*)?)?$", max_length=4096),
    Allowed("plain, tutor, interpreter, interpreter:target=LANGUAGE, the name of a table [personas.NAME], or nothing"),
]
LanguageCode = Annotated[
    str,
    Field(pattern=f"^(auto|{LANGUAGES})$"),
    Allowed("auto, or the two letters of a language that Whisper knows, such as en or fr (ISO 639-1)"),
]
Voices = Annotated[
    dict[Annotated[str, Field(pattern=f"^({LANGUAGES})$")], VoiceName],
    Allowed(
        'voices by the two letters of their languages, such as {fr = "pyttsx3:French (France)"}; '
        "a variable says fr=NAME,de=NAME"
    ),
]
ModelFile = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=4096),
    Allowed("the path of a GGUF file, HUB-ID:FILE.gguf after `voxcli models pull`, or nothing"),
]
WhisperName = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=4096),
    Allowed("a size such as base, small or large-v3, or the path of a faster-whisper folder"),
]
ServerUrl = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x20\x7f]*$", max_length=2048),
    Allowed("an http or https address such as http://localhost:8000/v1, or nothing"),
]
ServerModel = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=256),
    Allowed("the name that the server has for it, or nothing"),
]
Temperature = Annotated[
    Annotated[float, Field(strict=True, ge=0, le=2)] | Literal["auto"], Allowed("auto, or a number from 0 to 2")
]
TopP = Annotated[
    Annotated[float, Field(strict=True, ge=0.01, le=1)] | Literal["auto"], Allowed("auto, or a number from 0.01 to 1")
]
TurnSilenceMs = Annotated[
    Annotated[int, Field(strict=True, ge=32, le=10_000)] | Literal["auto"],
    Allowed("auto, or a whole number from 32 to 10000"),
]
DeviceName = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=256),
    Allowed('text: part of a device\'s name, its number such as "3", or nothing for the default device'),
]
WakeWord = Literal["off", "alexa", "hey_jarvis", "hey_mycroft", "okay_nabu"]  # models that pymicro-wakeword has
ControlAddress = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]+$"),
    Allowed("off, auto, or the path of a Unix socket; on Windows the name of a pipe"),
]
Instructions = Annotated[
    str,
    Field(max_length=INSTRUCTIONS_CHARACTERS),
    Allowed(f"text of at most {INSTRUCTIONS_CHARACTERS} characters, or @FILE to read it from a file"),
]
