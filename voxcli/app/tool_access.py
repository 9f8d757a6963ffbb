"""Opens the tools of a chat, a single turn or a batch run, with whoever may allow their calls."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from voxcli.app.parts import Notice
from voxcli.app.tools import has_tools, open_toolbox, with_servers_of
from voxcli.errors import ConfigError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.chat.messages import Inbound
    from voxcli.chat.responses.approval import Approver, ChatTools, Transcribe
    from voxcli.config.loading import Settings
    from voxcli.core.protocols import Engine
    from voxcli.tools.allowed import AllowedTools
    from voxcli.tools.tool import ToolSource
    from voxcli.tools.toolbox import Toolbox


class ChatToolbox:
    """Gives a chat the tools that its persona may call. They are opened for the first persona that may call any."""

    def __init__(self, open_tools: "Callable[[Settings], Toolbox | None]", approver: "Approver") -> None:
        """Begin without tools; `open_tools` opens those of the settings, `approver` asks before they run."""
        self._open_tools = open_tools
        self._approver = approver
        self._toolbox: Toolbox | None = None

    def tools_of(self, settings: "Settings") -> "ChatTools | None":
        """Return the tools that the persona of the settings may call; None if there are none.

        Raises:
            VoxError: a tool can't be opened.
        """
        from voxcli.chat.responses.approval import ChatTools
        from voxcli.config.personas import allowed_tools

        patterns = allowed_tools(settings.persona, settings.personas)
        if self._toolbox is None and patterns:
            self._toolbox = self._open_tools(settings)
        if self._toolbox is None or not patterns:
            return None
        return ChatTools(self._toolbox.limited_to(patterns), self._approver)


def chat_toolbox(
    settings: "Settings",
    engine: "Engine",
    post: "Callable[[Inbound], None]",
    stack: ExitStack,
    notice: Notice,
    announce: Callable[[str], None],
    *,
    has_keys: bool,
    listens: bool,
    further: "Sequence[ToolSource]" = (),
) -> ChatToolbox:
    """Return what opens the tools of a chat; it has none if none are set up, or the engine can't call any.

    Args:
        post: receives the questions whether a tool may run.
        notice: told, on any thread, what to know about the tools.
        announce: says a sentence to the user later, on any thread: that a timer is over.
        has_keys: whether there is a keyboard to answer with.
        listens: whether the user may answer by voice; that takes the embedded engine's Whisper.
        further: sources of other tools than those of the settings.
    """
    from voxcli.chat.responses.approval import Approver

    wanted = has_tools(settings) or bool(further)
    if wanted and not engine.supports_tools:
        notice(_unused(engine))
        wanted = False
    approver = Approver(post, _transcriber(settings, notice) if wanted and listens else None, has_keys=has_keys)

    def open_tools(chosen: "Settings") -> "Toolbox | None":
        return open_toolbox(chosen, approver, stack, notice, announce=announce, further=further) if wanted else None

    return ChatToolbox(open_tools, approver)


def open_allowed_tools(
    settings: "Settings", names: Sequence[str], stack: ExitStack, notice: Notice
) -> "AllowedTools | None":
    """Open the tools that `--allow-tool` names; None if it names none.

    Raises:
        ConfigError: there is no tool of a name, or it may never run.
        VoxError: a tool can't be opened.
    """
    from voxcli.tools.allowed import AllowedTools

    if not names:
        return None
    allowed = frozenset(names)
    needed = with_servers_of(allowed, settings)  # No other server is started.
    toolbox = open_toolbox(needed, lambda call, _interrupt: call.name in allowed, stack, notice, wait=True)
    for name in names:
        _check_name(name, toolbox, settings)
    return AllowedTools(toolbox, allowed) if toolbox else None


def usable_tools(tools: "AllowedTools | None", engine: "Engine", notice: Notice) -> "AllowedTools | None":
    """Return the tools if the engine can call them; otherwise say that they are left out."""
    if tools is None or engine.supports_tools:
        return tools
    notice(_unused(engine))
    return None


def _transcriber(settings: "Settings", notice: Notice) -> "Transcribe | None":
    """Return what transcribes answers: the embedded engine's Whisper, which is loaded when a question is asked."""
    from voxcli.config.paths import cache_folder
    from voxcli.engines.embedded.transcriber import answer_transcriber

    return answer_transcriber(cache_folder(), settings.embedded.whisper, settings.language, notice)


def _unused(engine: "Engine") -> str:
    return f"the {engine.name} engine can't call tools, so they are left out"


def _check_name(name: str, toolbox: "Toolbox | None", settings: "Settings") -> None:
    """Raise ConfigError unless a tool of this name may run."""
    from voxcli.config.personas import allowed_tools

    names = {spec.name for spec in toolbox.specs} if toolbox else set()
    if name in names:
        return
    shown = printable(name)[:64]
    if toolbox and name in toolbox.tools:
        raise ConfigError(f"the settings say that {shown} never runs", hint="change its approval there")
    if name == "timer" and name in settings.tools.builtin:
        raise ConfigError("timers end with a chat, so there are none here", hint="leave out --allow-tool timer")
    if not any(fnmatchcase(name, pattern) for pattern in allowed_tools(settings.persona, settings.personas)):
        persona = printable(settings.persona.partition(":")[0])
        raise ConfigError(f"the persona {persona} calls no tool {shown}", hint="choose another, or change its tools")
    near = get_close_matches(name, names, 1, cutoff=0.4)
    hint = f"did you mean --allow-tool {near[0]}?" if near else "voxcli tools list shows them"
    raise ConfigError(f"there is no tool {shown}", hint=hint)
