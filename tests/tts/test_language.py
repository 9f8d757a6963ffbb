"""Which language a sentence has: by script, by the detector, and in doubt the language before."""

# ruff: noqa: RUF001 - the letters of other scripts are meant

from collections.abc import Mapping

import pytest

from tests.support.sentences import NAMES, SENTENCES
from voxcli.errors import SpeechError
from voxcli.tts.languages.detection import LanguageDetector, LanguageFollower, is_installed, primary, script_of

needs_detector = pytest.mark.skipif(not is_installed(), reason="the extra languages is not installed")


class FakeDetector:
    """Gives the scores that were set for a text; records the texts."""

    def __init__(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        self.scores = scores
        self.asked: list[str] = []

    def __call__(self, text: str) -> Mapping[str, float]:
        self.asked.append(text)
        return self.scores.get(text, {})


def follower(start: str = "en", detector: LanguageDetector | None = None) -> LanguageFollower:
    return LanguageFollower(start, lambda: detector)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, Ωmega!", "LATIN"),
        ("Γειά σου", "GREEK"),
        ("東京です", "HIRAGANA"),
        ("iPhoneを買いました", "HIRAGANA"),
        ("我住在北京。", "CJK"),
        ("The city is 東京.", "LATIN"),
        ("Привет, John", "CYRILLIC"),
        ("ｈｅｌｌｏ", "LATIN"),
        ("ｱｲｳ", "KATAKANA"),
        ("12:30 - 14:00!", None),
        ("", None),
    ],
)
def test_most_letters_decide_about_the_script(text: str, script: str | None) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("申し訳ありませんが、英語でしかお答えできません。", "ja"),
        ("抱歉，我只能用英语回答。", "zh"),
        ("죄송하지만 영어로만 대답할 수 있습니다.", "ko"),
        ("عذرًا، لا أستطيع الإجابة إلا بالإنجليزية.", "ar"),
        ("Извините, я могу отвечать только на английском.", "ru"),
        ("Συγγνώμη, μπορώ να απαντήσω μόνο στα αγγλικά.", "el"),
        ("סליחה, אני יכול לענות רק באנגלית.", "he"),
        ("माफ़ कीजिए, मैं केवल अंग्रेज़ी में जवाब दे सकता हूँ।", "hi"),
        ("ขอโทษ ฉันตอบได้เฉพาะภาษาอังกฤษ", "th"),
    ],
)
def test_a_script_decides_without_a_detector(text: str, language: str) -> None:
    following = follower("fr")
    assert following.language_of(text) == language
    assert following.language_of("C'est fini.") == "fr", "Latin letters are the first language again"


def test_a_script_of_several_languages_keeps_the_one_that_is_spoken() -> None:
    following = follower("uk")
    assert following.language_of("Так.") == "uk"
    assert follower("ja").language_of("東京。") == "ja"


def test_a_script_limits_what_the_detector_may_answer() -> None:
    detector = FakeDetector({"Вибачте мене": {"de": 0.9, "uk": 0.6, "ru": 0.1}})
    assert follower("en", detector).language_of("Вибачте мене") == "uk"


@pytest.mark.parametrize(
    ("scores", "language"),
    [
        ({"fr": 0.9, "en": 0.1}, "fr"),
        ({"fr": 0.6, "en": 0.3}, "en"),  # Not three times as likely.
        ({"fr": 0.4}, "en"),  # Too unsure.
        ({}, "en"),
    ],
)
def test_a_language_is_left_only_for_a_clearly_likelier_one(scores: dict[str, float], language: str) -> None:
    assert follower("en", FakeDetector({"un deux trois": scores})).language_of("un deux trois") == language


def test_one_word_has_to_be_nearly_certain() -> None:
    detector = FakeDetector({"Amsterdam.": {"nl": 0.8}, "Natürlich.": {"de": 0.95}})
    following = follower("en", detector)
    assert following.language_of("Amsterdam.") == "en"
    assert following.language_of("Natürlich.") == "de"


def test_quotations_do_not_count() -> None:
    detector = FakeDetector({})
    following = follower("en", detector)
    following.language_of('You say "guten Tag" or «moin» or „servus“ there, don\'t you?')
    assert detector.asked[0].split() == ["You", "say", "or", "or", "there,", "don't", "you?"]
    following.language_of('"Guten Tag"')
    assert detector.asked[1] == '"Guten Tag"', "a sentence that is all quotation counts"


def test_numbers_and_marks_change_nothing() -> None:
    following = follower("de")
    assert following.language_of("12:30!") == "de"


def test_a_damaged_detector_is_reported_once_and_the_script_decides() -> None:
    def open_damaged() -> LanguageDetector:
        raise SpeechError("damaged")

    following = LanguageFollower("en", open_damaged)
    with pytest.raises(SpeechError):
        following.prepare()
    following.prepare()
    assert following.language_of("Oui, bien sûr.") == "en"


@pytest.mark.parametrize(
    ("tag", "code"), [("fr-be", "fr"), ("de_DE", "de"), ("cmn", "zh"), ("nb", "no"), ("EN", "en"), ("", "")]
)
def test_tags_of_drivers_become_codes(tag: str, code: str) -> None:
    assert primary(tag) == code


@needs_detector
@pytest.mark.parametrize("start", ["en", "fr", "de", "es"])
def test_forty_sentences_in_turn_have_their_languages(start: str) -> None:
    following = LanguageFollower(start)
    in_turn = [(language, group[number]) for number in range(10) for language, group in SENTENCES.items()]
    assert [(following.language_of(text), text) for _, text in in_turn] == in_turn


@needs_detector
@pytest.mark.parametrize("language", NAMES)
def test_foreign_names_change_nothing(language: str) -> None:
    following = LanguageFollower(language)
    assert {text: following.language_of(text) for text in NAMES[language]} == dict.fromkeys(NAMES[language], language)


@needs_detector
def test_asking_again_gives_the_same_answer() -> None:
    following = LanguageFollower("en")
    for text in SENTENCES["fr"]:
        assert following.language_of(text) == following.language_of(text) == "fr"
