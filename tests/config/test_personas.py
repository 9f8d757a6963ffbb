"""Personas: chosen by name, above the settings file and below what the user says for this run; names filled in once."""

import re
from pathlib import Path
from typing import Any

import pytest

from voxcli.config.languages import LANGUAGE_NAMES
from voxcli.config.loading import check_text, explain, load
from voxcli.config.personas import SHIPPED, PersonaSettings, chosen_persona, known_personas
from voxcli.config.templates import BUILTIN_NAMES, Moment, filled, is_filled_from, names_in
from voxcli.config.toml_text import as_toml
from voxcli.config.values import DEFAULT_INSTRUCTIONS, LANGUAGES
from voxcli.errors import ConfigError

MOMENT = Moment("Tuesday, 1 December 2026", "09:33", "en_US", "Anna")
FILE = """\
voice = "piper:amy"
language = "de"
instructions = "Those of the file."

[reply]
temperature = 1.5

[personas.cook]
instructions = "You cook for {user} on {date}, in {units}."
voice = "neural:emma"
engine = "remote"
model = "chef"
temperature = 0.5
top_p = 0.9
max_tokens = 40
tools = ["time"]
values = {units = "grams"}

[personas.interpreter]
voice = "neural"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(FILE)
    return path


def set_by(path: Path, persona: str, environ: dict[str, str] | None = None, **flags: Any) -> dict[str, tuple[Any, str]]:
    """Return value and origin of the settings that a persona may have."""
    settings, origins = explain(path, {"persona": persona, **flags}, environ or {})
    values = {
        "instructions": settings.instructions,
        "voice": settings.voice,
        "language": settings.language,
        "engine": settings.engine,
        "model": settings.model,
        "remote.model": settings.remote.model,
        "reply.temperature": settings.reply.temperature,
        "reply.top_p": settings.reply.top_p,
        "reply.max_tokens": settings.reply.max_tokens,
    }
    return {name: (value, str(origins[name]).replace(str(path), "FILE")) for name, value in values.items()}


def test_a_persona_comes_before_the_file_and_leaves_out_what_it_does_not_set(file: Path) -> None:
    assert set_by(file, "cook") == {
        "instructions": ("You cook for {user} on {date}, in {units}.", "persona cook"),
        "voice": ("neural:emma", "persona cook"),
        "language": ("de", "file FILE, line 2"),
        "engine": ("remote", "persona cook"),
        "model": ("mini", "default"),
        "remote.model": ("chef", "persona cook"),
        "reply.temperature": (0.5, "persona cook"),
        "reply.top_p": (0.9, "persona cook"),
        "reply.max_tokens": (40, "persona cook"),
    }
    assert set_by(file, "")["voice"] == ("piper:amy", "file FILE, line 1")


def test_flags_and_variables_come_before_a_persona(file: Path) -> None:
    environ = {"VOXCLI_VOICE": "pyttsx3", "VOXCLI_REPLY__TOP_P": "0.1"}
    found = set_by(file, "cook", environ, **{"instructions": "Mine: {date}.", "engine": "voxtral"})
    assert found["voice"] == ("pyttsx3", "environment VOXCLI_VOICE")
    assert found["reply.top_p"] == (0.1, "environment VOXCLI_REPLY__TOP_P")
    assert found["instructions"] == ("Mine: {date}.", "flag")
    assert (found["model"], found["remote.model"]) == (("chef", "persona cook"), ("", "default"))


def test_the_file_and_a_variable_choose_a_persona_too(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('persona = "tutor"\n')
    assert load(path, {}, {}, moment=MOMENT).instructions.startswith("You are a friendly language tutor")
    assert load(path, {}, {"VOXCLI_PERSONA": "plain"}).instructions == DEFAULT_INSTRUCTIONS
    assert load(path, {"persona": ""}, {"VOXCLI_PERSONA": "tutor"}).instructions == DEFAULT_INSTRUCTIONS
    resumed, origins = explain(path, {}, {"VOXCLI_PERSONA": "tutor"}, persona="interpreter")
    assert (resumed.reply.temperature, str(origins["persona"])) == (0.0, "session")


def test_names_are_filled_in_for_a_persona_alone(file: Path) -> None:
    settings = load(file, {"persona": "cook"}, {}, moment=MOMENT)
    assert settings.instructions == "You cook for Anna on Tuesday, 1 December 2026, in grams."
    assert load(file, {"persona": "cook", "instructions": "{x}"}, {}).instructions == "{x}"
    assert load(file, {"instructions": '{"date": {date}}'}, {}).instructions == '{"date": {date}}'
    literal = load(
        file, {"personas.cook.instructions": '{{date}} {} {1} {"a": 2} {language}'}, {"VOXCLI_PERSONA": "cook"}
    )
    assert literal.instructions == '{date} {} {1} {"a": 2} German'


def test_a_value_is_given_with_the_name_of_the_persona(file: Path) -> None:
    settings = load(file, {"persona": "interpreter:target=Brazilian Portuguese"}, {}, moment=MOMENT)
    assert "in Brazilian Portuguese, as if" in settings.instructions
    assert settings.voice == "neural"  # what the file changes of it
    assert "in English, as if" in load(file, {"persona": "interpreter"}, {}).instructions
    named = load(file, {"persona": "cook:user=Bob {date},units=cups"}, {}, moment=MOMENT)
    assert named.instructions == "You cook for Bob {date} on Tuesday, 1 December 2026, in cups."


@pytest.mark.parametrize(
    ("choice", "message", "hint"),
    [
        ("tutr", "there is no persona 'tutr'", "did you mean tutor?"),
        ("coook", "there is no persona 'coook'", "did you mean cook?"),
        ("xyzzyq", "there is no persona 'xyzzyq'", "voxcli personas list shows all"),
        ("interpreter:taget=French", "persona interpreter has no value 'taget=French'", "interpreter:target=TEXT"),
        ("interpreter:French", "persona interpreter has no value 'French'", "interpreter:target=TEXT"),
        ("plain:a=b", "persona plain has no value 'a=b'", "it has none"),
        ("interpreter:target=", "the value target of persona interpreter is empty", "interpreter:target=TEXT"),
        ("interpreter:target= ,user=A", "the value target of persona interpreter is empty", "interpreter:target=TEXT"),
        ("plain:user=", "the value user of persona plain is empty", "plain:user=TEXT"),
    ],
)
def test_a_wrong_choice_names_what_is_nearest(file: Path, choice: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, {"persona": choice}, {})
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize("choice", ["a b", "x" * 33, "tutor\n", "tutor:a=\x1b", ":target=x"])
def test_what_can_be_no_persona_is_refused_like_every_setting(file: Path, choice: str) -> None:
    with pytest.raises(ConfigError, match="must be plain, tutor"):
        load(file, {"persona": choice}, {})


def test_an_unknown_name_is_an_error_with_the_nearest(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, {"persona": "cook", "personas.cook.instructions": "It is {dat}."}, {})
    assert caught.value.message == "unknown name {dat} in the instructions of persona cook"
    assert caught.value.hint == "did you mean {date}? {{dat}} is the word in braces"
    for text, message in (
        ("[personas.x]\ninstructions = 'Now {tme}'", "unknown name {tme} in the instructions of persona x"),
        ("persona = 'tutr'", "there is no persona 'tutr'"),
        ("[personas.x]\nvoice = ''", "personas.x.voice is ''"),
        ("[personas.x]\nvioce = 'a'", "unknown setting personas.x.vioce"),
        ("[personas.x]\ntools = ['a b']", "personas.x.tools is ['a b']"),
        ("[personas.x]\nvalues = {'a b' = 'c'}", "personas.x.values is {'a b': 'c'}"),
        ("[personas.x]\nmax_tokens = 0", "personas.x.max_tokens is 0"),
        ("[personas.x]\nengine = 'gpt'", "personas.x.engine is 'gpt'"),
    ):
        with pytest.raises(ConfigError) as refused:
            check_text(text, Path("my.toml"))
        assert refused.value.message.startswith(message)


def test_instructions_of_a_persona_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "cook.txt").write_text("Cook on {date}.\n")
    path = tmp_path / "my.toml"
    path.write_text('[personas.cook]\ninstructions = "@cook.txt"\n')
    assert load(path, {"persona": "cook"}, {}, moment=MOMENT).instructions == "Cook on Tuesday, 1 December 2026."


def test_a_shipped_persona_is_changed_key_by_key() -> None:
    own = {"interpreter": PersonaSettings(temperature=1.0, values={"tone": "kind"})}
    (name, changed) = chosen_persona("interpreter:tone=stern", own)
    assert (name, changed.instructions, changed.tools) == ("interpreter", SHIPPED["interpreter"].instructions, [])
    assert (changed.temperature, changed.values) == (1.0, {"target": "English", "tone": "stern"})
    assert list(known_personas({"x": PersonaSettings(), **own})) == ["plain", "tutor", "interpreter", "x"]


def test_shipped_personas_are_complete_and_the_plain_one_is_the_default() -> None:
    assert SHIPPED["plain"].instructions == DEFAULT_INSTRUCTIONS
    for persona in SHIPPED.values():
        assert persona.instructions
        assert names_in(persona.instructions) <= {*BUILTIN_NAMES, *persona.values}


def test_what_is_shown_names_the_persona(file: Path) -> None:
    settings, origins = explain(file, {"persona": "cook"}, {})
    assert 'voice = "neural:emma"  # persona cook\n' in as_toml(settings, origins)
    assert 'persona = "cook"  # flag\n' in as_toml(settings, origins)


def test_now_is_a_day_a_minute_a_place_and_a_user() -> None:
    now = Moment.now({"LANG": "de_DE.UTF-8", "LC_ALL": ""})
    assert re.fullmatch(r"[A-Z]\w+day, \d{1,2} [A-Z]\w+ \d{4}", now.date)
    assert re.fullmatch(r"\d\d:\d\d", now.time)
    assert now.locale == "de_DE"
    assert now.user
    assert now.user.isprintable()
    assert Moment.now({"LANG": "C.UTF-8"}).locale
    assert now.names("fr")["language"] == "French"
    assert now.names("auto")["language"] == "the language that the user speaks"
    assert set(now.names("en")) == set(BUILTIN_NAMES)


def test_every_language_has_a_name() -> None:
    assert set(LANGUAGE_NAMES) == set(LANGUAGES.split("|"))


@pytest.mark.parametrize(
    ("text", "template", "is_so"),
    [
        ("Be kind.", "Be kind.", True),
        ("Be kind!", "Be kind.", False),
        ("On 1 May, {x}.", "On {date}, {{x}}.", True),
        ("On 1 May, x.", "On {date}, {{x}}.", False),
        ("a\nb", "{x}", True),
        ("aXbYc", "a{x}b{y}c", True),
        ("abc", "a{x}b{y}c", True),
        ("ac", "a{x}b{y}c", False),
        ("aba", "ab{x}ba", False),
        ("", "{x}", True),
        ("a" * 16_000, "a{x}" * 500 + "b", False),
    ],
)
def test_a_text_is_told_to_come_from_a_template(text: str, template: str, is_so: bool) -> None:
    assert is_filled_from(text, template) is is_so


def test_what_is_filled_in_is_not_read_as_a_template_again() -> None:
    assert filled("{a} {b}", {"a": "{b}", "b": "{{"}) == "{b} {{"
