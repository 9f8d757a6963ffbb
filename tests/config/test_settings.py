import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from voxcli.chat.speech.endpointing import EndpointingSettings
from voxcli.chat.speech.silence import TurnSilence
from voxcli.config.loading import Settings, explain, fields, load, values
from voxcli.config.schema import LiveSettings, allowed, is_list, is_table, number_type, variable
from voxcli.config.toml_text import as_toml, example
from voxcli.config.values import DEFAULT_INSTRUCTIONS
from voxcli.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "my.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, flags, environ)
    assert caught.value.exit_code == 2
    return caught.value


# --- Precedence and origins ----------------------------------------------------------------------


def test_defaults_hold_where_nothing_is_given() -> None:
    settings, origins = explain(None, {}, {})
    assert settings == Settings()
    assert {origin.kind for origin in origins.values()} == {"default"}


def test_each_source_beats_the_weaker_ones(tmp_path: Path) -> None:
    path = written(tmp_path, "[reply]\nmax_tokens = 1\ntemperature = 0.1\ntop_p = 0.1\n")
    environ = {"VOXCLI_REPLY__MAX_TOKENS": "2", "VOXCLI_REPLY__TEMPERATURE": "0.2", "PATH": "/bin"}
    settings, origins = explain(path, {"reply.max_tokens": 3}, environ)
    assert settings.reply.max_tokens == 3
    assert settings.reply.temperature == 0.2
    assert settings.reply.top_p == 0.1
    assert settings.session.context_tokens == 8192
    assert str(origins["reply.max_tokens"]) == "flag"
    assert str(origins["reply.temperature"]) == "environment VOXCLI_REPLY__TEMPERATURE"
    assert str(origins["reply.top_p"]) == f"file {path}, line 4"
    assert str(origins["session.context_tokens"]) == "default"


def another(name: str, field: FieldInfo) -> Any:
    """Return a value that a setting may have and does not have by default."""
    if field.annotation is bool:
        return not field.default
    if get_origin(field.annotation) is Literal:
        return get_args(field.annotation)[-1]
    if field.annotation is str:
        return {"voice": "piper:amy", "device": "cuda:1", "language": "fr", "persona": "plain"}.get(name, "Other.")
    if is_list(field) or is_table(field):
        voices = {"fr": "pyttsx3:French (France)", "zh": "pyttsx3:Chinese (Mandarin, latin as English)"}
        approvals = {"timer": "ask", "files_read-file": "never"}
        return {"voices": voices, "tools.approvals": approvals, "tools.builtin": ["timer", "time"]}[name]
    if get_origin(field.annotation) is Union:  # a number or auto
        return 700 if number_type(field) is int else 0.25
    most = next(entry.le for entry in field.metadata if hasattr(entry, "le"))
    return most / 4 if field.annotation is float else most


@pytest.mark.parametrize("name", list(fields()))
def test_every_setting_can_be_set_in_every_source(name: str, tmp_path: Path) -> None:
    field = fields()[name]
    other = another(name, field)
    section, _, key = name.rpartition(".")
    as_text, in_toml = str(other), json.dumps(other)
    if isinstance(other, list):
        as_text = ",".join(other)
    if isinstance(other, dict):
        as_text = ",".join(f"{inner}={value}" for inner, value in other.items())
        in_toml = "{" + ", ".join(f'{inner} = "{value}"' for inner, value in other.items()) + "}"
    path = written(tmp_path, (f"[{section}]\n" if section else "") + f"{key} = {in_toml}\n")
    for settings in (load(path, {}, {}), load(None, {name: other}, {}), load(None, {}, {variable(name): as_text})):
        assert values(settings)[name] == other != field.default


def test_the_default_file_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "voxcli").mkdir()
    (tmp_path / "voxcli" / "config.toml").write_text('model = "small"\n')
    assert load(None, {}, {}).model == "small"


def test_an_empty_variable_the_data_folder_and_the_key_are_no_settings() -> None:
    assert (
        load(None, {}, {"VOXCLI_ENGINE": "", "VOXCLI_HOME": "/x", "VOXCLI_API_KEY": "k", "VOXCLI_LOG": "/y"})
        == Settings()
    )


def test_endpointing_has_the_same_defaults() -> None:
    ours, theirs = LiveSettings().model_dump(), asdict(EndpointingSettings())
    assert (ours.pop("min_silence_ms"), theirs.pop("min_silence_ms")) == ("auto", TurnSilence().ms)
    shared = ours.keys() & theirs.keys()
    # Not for users, and what push-to-talk makes of it.
    assert theirs.keys() - shared == {"reopen_ms", "by_voice", "complete_silence_ms"}
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_settings_cannot_be_changed() -> None:
    settings = load(None, {}, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.engine = "embedded"
    with pytest.raises(ValueError, match="frozen"):
        settings.reply.max_tokens = 1


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    assert load(written(tmp_path, b'\xef\xbb\xbfmodel = "small"\n'), {}, {}).model == "small"


def test_voices_of_languages_may_be_a_table_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path, '[voices]\nfr = "piper:siwis"\nde = "pyttsx3:German"\n')
    settings, origins = explain(path, {}, {})
    assert settings.voices == {"fr": "piper:siwis", "de": "pyttsx3:German"}
    assert str(origins["voices"]) == f"file {path}, line 1"
    assert tomllib.loads(as_toml(settings, origins))["voices"] == settings.voices


@pytest.mark.parametrize("text", ["fr", "fr=", "=pyttsx3", "fr=pyttsx3:a,xx=pyttsx3:b"])
def test_voices_given_as_text_are_checked(text: str) -> None:
    assert refusal(None, {}, {"VOXCLI_VOICES": text}).message.startswith("voices is {")


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "nearest"),
    [
        ("[audio]\n\nmax_second = 3\n", "audio.max_second ({path}, line 3)", "audio.max_seconds"),
        ('enginee = "auto"\n', "enginee ({path}, line 1)", "engine"),
        ("[sesion]\ncontext_tokens = 1024\n", "sesion.context_tokens ({path}, line 2)", "session.context_tokens"),
        ("reply.max_token = 3\n", "reply.max_token ({path}, line 1)", "reply.max_tokens"),
        ("[speach]\n", "speach ({path}, line 1)", "speech?"),
        ("max_tokens = 3\n", "max_tokens ({path}, line 1)", "reply.max_tokens?"),
        ("[reply.deep]\nx = 1\n", "reply.deep ({path}, line 1)", "reply.top_p"),
        ('"\\u001b[2J" = 1\n', "\\x1b[2J ({path})", ""),
    ],
)
def test_an_unknown_key_is_placed_and_the_nearest_named(text: str, place: str, nearest: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    error = refusal(path, {}, {})
    assert error.message == f"unknown setting {place.format(path=path)}"
    assert error.hint.startswith(f"did you mean {nearest}")


def test_an_unknown_variable_names_the_nearest() -> None:
    error = refusal(None, {}, {"VOXCLI_AUDIO_MAX_SECONDS": "3"})
    assert error.message == "unknown variable VOXCLI_AUDIO_MAX_SECONDS (environment)"
    assert error.hint == "did you mean VOXCLI_AUDIO__MAX_SECONDS?"


@pytest.mark.parametrize(
    ("name", "toml", "must"),
    [
        ("engine", '"fast"', "one of auto, voxtral, embedded"),
        ("engine", "3", "one of auto"),
        ("model", '""', "mini, small"),
        ("model", '"a\\u0000b"', "mini, small"),
        ("voice", '""', "auto, neural"),
        ("voice", '"a\\u001bb"', "piper:NAME"),
        ("instructions", '"' + "a" * 16_385 + '"', "16384 characters"),
        ("reply.max_tokens", "0", "a whole number from 1 to 8192"),
        ("reply.max_tokens", "8193", "a whole number from 1 to 8192"),
        ("reply.max_tokens", "1.5", "a whole number"),
        ("reply.max_tokens", '"64"', "a whole number"),
        ("reply.max_tokens", "true", "a whole number"),
        ("reply.max_tokens", "{deep = {deeper = 1}}", "a whole number"),
        ("reply.max_tokens", "0x" + "f" * 5000, "a whole number"),
        ("reply.temperature", "nan", "a number from 0 to 2"),
        ("reply.temperature", '"warm"', "auto, or a number from 0 to 2"),
        ("reply.temperature", "true", "auto, or a number from 0 to 2"),
        ("reply.temperature", "-inf", "a number from 0 to 2"),
        ("reply.top_p", "0.0", "a number from 0.01 to 1"),
        ("audio.max_seconds", "-1", "a number from 0.1 to 86400"),
        ("live.speculative_replies", "1", "true or false"),
        ("live.speculative_replies", '"yes"', "true or false"),
        ("live.push_to_talk", "true", "one of off, toggle, hold"),
        ("live.input_device", "3", 'its number such as "3"'),
        ("live.input_device", '"a\\u001b"', "part of a device's name"),
        ("live.pre_roll_ms", "-1", "a whole number from 0 to 5000"),
        ("language", '"english"', "auto, or the two letters of a language"),
        ("language", '"xx"', "auto, or the two letters of a language"),
        ("voices", '{english = "pyttsx3"}', "voices by the two letters of their languages"),
        ("voices", '{french = "pyttsx3"}', "voices by the two letters of their languages"),
        ("voices", '"fr=pyttsx3"', "voices by the two letters of their languages"),
        ("voices", "3", "voices by the two letters of their languages"),
    ],
)
def test_a_wrong_value_in_the_file_is_placed_and_explained(name: str, toml: str, must: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"# first line\n{name} = {toml}\n")
    error = refusal(path, {}, {})
    assert re.match(rf"{re.escape(name)} is .{{1,80}} \({re.escape(str(path))}, line 2\), but must be ", error.message)
    assert must in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("0.7", 0.7), ("auto", "auto")])
def test_a_flag_or_a_variable_says_a_number_or_auto(text: str, value: float | str) -> None:
    assert load(None, {"reply.temperature": text}, {}).reply.temperature == value
    assert load(None, {}, {"VOXCLI_REPLY__TEMPERATURE": text}).reply.temperature == value


def test_a_wrong_flag_is_told_as_a_wrong_setting() -> None:
    error = refusal(None, {"reply.temperature": "3"}, {})
    assert error.message == "--temperature is 3.0 (command line), but must be auto, or a number from 0 to 2"


@pytest.mark.parametrize("text", ["many", "1.5", "0", "-1", "1e3", "\udcff", "9" * 5000])
def test_a_wrong_value_in_a_variable_names_the_variable(text: str) -> None:
    error = refusal(None, {}, {"VOXCLI_REPLY__MAX_TOKENS": text})
    assert "(VOXCLI_REPLY__MAX_TOKENS), but must be a whole number from 1 to 8192" in error.message


@pytest.mark.parametrize(
    ("text", "truth"),
    [("true", True), ("Yes", True), ("1", True), ("FALSE", False), ("no", False), ("0", False)],
)
def test_a_variable_says_true_or_false_in_several_ways(text: str, truth: bool) -> None:
    settings = load(None, {}, {"VOXCLI_LIVE__SPECULATIVE_REPLIES": text, "VOXCLI_LIVE__BARGE_IN": text})
    assert settings.live.speculative_replies is settings.live.barge_in is truth


@pytest.mark.parametrize("text", ["on", "2", "tru", " true", "y", "\u0660"])
def test_a_variable_that_says_neither_is_told_what_it_may_say(text: str) -> None:
    error = refusal(None, {}, {"VOXCLI_LIVE__SPECULATIVE_REPLIES": text})
    assert error.message.endswith("must be true or false; a variable may also say yes, no, 1 or 0")
    assert "VOXCLI_LIVE__SPECULATIVE_REPLIES" in error.message


def test_a_wrong_flag_is_explained() -> None:
    error = refusal(None, {"device": "tpu"}, {})
    assert (
        error.message == "--device is 'tpu' (command line), but must be auto, cuda, cuda:N such as cuda:1, mps or cpu"
    )


def test_a_section_needs_its_header(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, "audio = 3\n"), {}, {})
    assert "audio is a section" in error.message
    assert "[audio]" in error.hint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"engine = \n", r"not TOML: .*line 1"),
        (b'model = "a"\nmodel = "b"\n', r"not TOML: .*line 2"),
        (b"x = " + b"[" * 100_000, "not TOML"),
        (b"x = " + b"9" * 5000, "not TOML"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"#" * (1 << 20) + b"\n", "more than 1048576 bytes"),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    error = refusal(path, {}, {})
    assert re.search(reason, error.message)
    assert str(path) in error.message


def test_a_named_file_must_exist_and_be_a_file(tmp_path: Path) -> None:
    missing = refusal(tmp_path / "none.toml", {}, {})
    assert "No such file" in missing.message
    assert missing.hint
    assert "Is a directory" in refusal(tmp_path, {}, {}).message


@given(st.text())
def test_any_text_as_a_value_is_taken_or_refused(text: str) -> None:
    for name in ("VOXCLI_MODEL", "VOXCLI_VOICE", "VOXCLI_REPLY__TOP_P", "VOXCLI_SPEECH__WORDS_PER_MINUTE"):
        try:
            load(None, {}, {name: text})
        except ConfigError as error:
            assert name in error.message  # noqa: PT017 - a text may well be allowed


# --- Instructions from a file --------------------------------------------------------------------


def test_instructions_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "pirate.txt").write_text("Arr,\nspeak ünlike others.\n", encoding="utf-8")
    settings, origins = explain(None, {"instructions": "@pirate.txt"}, {})
    assert settings.instructions == "Arr,\nspeak ünlike others."
    assert str(origins["instructions"]) == "flag @pirate.txt"


def test_a_name_in_the_settings_file_counts_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "pirate.txt").write_text("Arr.")
    path = written(folder, 'instructions = "@pirate.txt"\n')
    assert load(path, {}, {}).instructions == "Arr."


def test_a_file_that_a_stronger_source_hides_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, 'instructions = "@missing.txt"\n')
    assert load(path, {"instructions": "Hi."}, {}).instructions == "Hi."


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("@missing.txt", "No such file"),
        ("@", "Is a directory"),
        ("@big.txt", "16384 characters"),
        ("@huge.txt", "more than 65536 bytes"),
        ("@latin.txt", "not UTF-8 at byte 1"),
        ("@a\0b", "null byte"),
        ("@~no-such-user-here/x", "home directory"),
    ],
)
def test_instructions_that_cannot_be_read_are_refused(value: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("a" * 16_385)
    (tmp_path / "huge.txt").write_text("a" * 65_537)
    (tmp_path / "latin.txt").write_bytes(b"A\xe9")
    assert reason in refusal(None, {"instructions": value}, {}).message


# --- Texts that are made from the settings -------------------------------------------------------


def test_the_example_file_is_what_init_writes() -> None:
    assert (ROOT / "config.example.toml").read_text(encoding="utf-8") == example()


def test_the_example_changes_nothing_and_documents_every_default(tmp_path: Path) -> None:
    assert load(written(tmp_path, example()), {}, {}) == Settings()
    uncommented = re.sub(r"(?m)^# (\w+ = )", r"\1", example())
    settings, origins = explain(written(tmp_path, uncommented), {}, {})
    assert settings == Settings()
    assert {origin.kind for origin in origins.values()} == {"file"}


def test_every_setting_has_a_description_and_numbers_name_their_unit() -> None:
    units = r"in (seconds|milliseconds|tokens|characters|words per minute)|no unit"
    for name, field in fields().items():
        assert field.description, name
        if field.annotation in (int, float):
            assert re.search(units, field.description), name


def test_the_documented_table_is_that_of_the_settings() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, field in fields().items():
        default = "see below" if name == "instructions" else f"`{json.dumps(field.default)}`"
        assert f"| `{name}` | `{variable(name)}` | {default} | {allowed(field)} | {field.description} |\n" in text
    assert text.count("| `VOXCLI_") == len(fields()) + 5  # VOXCLI_HOME, the three API keys and VOXCLI_LOG.
    assert f"> {DEFAULT_INSTRUCTIONS}\n" in text


@given(instructions=st.text(st.characters(codec="utf-8"), max_size=50).filter(lambda text: not text.startswith("@")))
def test_what_is_shown_reads_back_as_the_same_settings(instructions: str) -> None:
    settings, origins = explain(None, {"instructions": instructions, "reply.temperature": 1e-05}, {})
    tables = tomllib.loads(as_toml(settings, origins))
    assert Settings.model_validate(tables) == settings


def test_a_line_break_in_a_file_name_stays_in_its_comment(tmp_path: Path) -> None:
    folder = tmp_path / "new\nmodel = 'forged'"
    folder.mkdir()
    settings, origins = explain(written(folder, 'engine = "auto"\n'), {}, {})
    assert Settings.model_validate(tomllib.loads(as_toml(settings, origins))) == Settings()


def test_importing_the_settings_imports_no_model_library() -> None:
    code = "import sys, voxcli.config.loading; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "voxcli.config.loading" in names
    assert not {"torch", "transformers", "numpy", "sounddevice"} & set(names)
