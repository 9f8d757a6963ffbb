"""Opens the facts about the user for a chat, as the settings say."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from voxcli.errors import StoreError

if TYPE_CHECKING:
    from voxcli.app.parts import Notice
    from voxcli.chat.events import LiveEvent
    from voxcli.chat.responses.response import Responder
    from voxcli.config.loading import Settings
    from voxcli.core.memory import Memory
    from voxcli.core.storage.facts import FactFile


def open_facts(settings: "Settings", memory: "Memory", notice: "Notice") -> "FactFile | None":
    """Tell the facts to the prompts of a chat, and return their file; None if the chat has none.

    `notice` is told of a file that can't be read, and of facts that a prompt has no room for.
    """
    if not settings.facts:
        return None
    from voxcli.core.facts import PROMPT_CHARACTERS, newest_facts

    file = fact_file()
    try:
        facts = file.read()
    except StoreError as error:
        notice(f"this chat has no facts: {error.message}")
        return None
    told = newest_facts(facts, min(PROMPT_CHARACTERS, settings.session.context_tokens // 2))
    if len(told) < len(facts):
        notice(f"the model is told the newest {len(told)} of {len(facts)} facts; voxcli facts delete shortens them")
    memory.tell_facts(told)
    return file


def finding_facts(
    show: "Callable[[LiveEvent], None]", file: "FactFile | None", responder: "Responder", settings: "Settings"
) -> "Callable[[LiveEvent], None]":
    """Return `show`, or a function that also finds facts for the file before it shows the last event."""
    if file is None:
        return show
    from voxcli.chat.facts import FactFinder
    from voxcli.core.facts import SAID_CHARACTERS

    characters = min(SAID_CHARACTERS, settings.session.context_tokens)  # At most half of the tokens.
    return FactFinder(file, responder.engine, show, responder.finish, characters).show


def fact_file() -> "FactFile":
    """Return the file of facts in the data folder."""
    from voxcli.config.paths import data_folder
    from voxcli.core.storage.facts import FactFile

    return FactFile(data_folder())
