"""What voxcli itself says in a conversation about tools, in the languages of Voxtral, and how people answer it."""

import re
from dataclasses import dataclass

from voxcli.core.tool_words import argument_pairs, raw, tool_name
from voxcli.core.tools import ToolCall

SPOKEN_CHARACTERS = 80  # most characters of the arguments that are read aloud: about 6 s
ENGLISH = "en"


@dataclass(frozen=True)
class Phrases:
    """Phrases of one language. `{tool}` and `{arguments}` stand for what is called."""

    one_moment: str
    question: str
    question_with: str
    by_key: str
    more: str  # Stands for the rest of arguments that are too long to be read aloud.


PHRASES = {
    "en": Phrases(
        "One moment.", "May I run {tool}?", "May I run {tool} with {arguments}?", "Press Y or N.", "and more"
    ),
    "fr": Phrases(
        "Un instant.",
        "Puis-je lancer {tool} ?",
        "Puis-je lancer {tool} avec {arguments} ?",
        "Appuyez sur Y ou N.",
        "et plus",
    ),
    "de": Phrases(
        "Einen Moment.",
        "Darf ich {tool} ausführen?",
        "Darf ich {tool} mit {arguments} ausführen?",
        "Drücken Sie Y oder N.",
        "und mehr",
    ),
    "es": Phrases(
        "Un momento.",
        "¿Puedo ejecutar {tool}?",
        "¿Puedo ejecutar {tool} con {arguments}?",
        "Pulse Y o N.",
        "y más",
    ),
    "it": Phrases(
        "Un momento.", "Posso eseguire {tool}?", "Posso eseguire {tool} con {arguments}?", "Prema Y o N.", "e altro"
    ),
    "pt": Phrases(
        "Um momento.",
        "Posso executar {tool}?",
        "Posso executar {tool} com {arguments}?",
        "Pressione Y ou N.",
        "e mais",
    ),
    "nl": Phrases(
        "Een moment.",
        "Mag ik {tool} uitvoeren?",
        "Mag ik {tool} met {arguments} uitvoeren?",
        "Druk op Y of N.",
        "en meer",
    ),
    "hi": Phrases(
        "एक क्षण।",
        "क्या मैं {tool} चला सकता हूँ?",
        "क्या मैं {arguments} के साथ {tool} चला सकता हूँ?",
        "Y या N दबाइए।",
        "और भी",
    ),
}


def _answers(text: str) -> frozenset[str]:
    """Return the answers of a list that bars and line ends divide."""
    return frozenset(filter(None, (each.strip() for each in re.split(r"[|\n]", text))))


# Whole answers, in lower case and without punctuation. Anything else is neither yes nor no.
YES = _answers(
    """
    yes|yeah|yep|yes please|yes you may|yes go ahead|go ahead|sure|of course|ok|okay|please do|do it|allow|allow it
    oui|oui vas y|oui allez y|vas y|allez y|d accord|bien sûr|ja|ja bitte|gerne|klar|sí|si|sí por favor|claro|vale
    certo|sim|sim por favor|ja graag|graag|हाँ|हां|जी हाँ|जी हां|ठीक है
    """
)
NO = _answers(
    """
    no|nope|no thanks|no thank you|no don t|don t|do not|stop|cancel|refuse|never
    non|non merci|nein|nein danke|no gracias|no grazie|não|não obrigado|nee|nee dank je|नहीं|नही|जी नहीं
    """
)


def one_moment(language: str | None) -> str:
    """Return what is said while a tool takes long."""
    return _phrases(language).one_moment


def spoken_question(call: ToolCall, language: str | None, *, by_key: bool) -> str:
    """Return the question whether a tool may run, as it is spoken; long arguments are cut.

    Args:
        by_key: only keys can answer it.
    """
    phrases = _phrases(language)
    words = ", ".join(f"{name} {value}" for name, value in argument_pairs(call)) or raw(call)
    words = " ".join(words.split())
    if len(words) > SPOKEN_CHARACTERS:
        words = f"{words[:SPOKEN_CHARACTERS].rsplit(' ', 1)[0]}, {phrases.more}"
    tool = re.sub(r"[_-]+", " ", tool_name(call))
    form = phrases.question_with if words else phrases.question
    parts = {"tool": tool, "arguments": words}
    question = re.sub(r"\{(tool|arguments)\}", lambda found: parts[found[1]], form)
    return f"{question} {phrases.by_key}" if by_key else question


def verdict(answer: str) -> bool | None:
    """Return whether an answer means yes or no; None if it is neither.

    The whole answer has to mean it, or each of its clauses: Whisper writes a short "Yes." twice at times.
    """
    found = _meaning(answer)
    clauses = {_meaning(clause) for clause in re.split(r"[.,;:!?¡¿।]", answer) if clause.strip()}
    return clauses.pop() if found is None and len(clauses) == 1 else found


def _meaning(text: str) -> bool | None:
    words = " ".join(re.sub(r"[^\w\s\u0900-\u0963]", " ", text.casefold()).split())
    if words in YES:
        return True
    return False if words in NO else None


def typed_verdict(answer: str) -> bool | None:
    """Return whether a typed answer means yes or no; None if it is neither."""
    return {"y": True, "n": False}.get(answer.strip().casefold(), verdict(answer))


def _phrases(language: str | None) -> Phrases:
    return PHRASES.get((language or ENGLISH).partition("-")[0].casefold(), PHRASES[ENGLISH])
