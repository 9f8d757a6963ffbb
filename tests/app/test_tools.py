"""Tools from the settings: which are opened, what is told of those that can't be used."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from voxcli.app.checks import diagnostics
from voxcli.app.tool_access import open_allowed_tools
from voxcli.app.tools import broken_tools, has_tools, listed_tools, open_toolbox
from voxcli.config.loading import Settings, load
from voxcli.core.tools import ToolCall, ToolSpec
from voxcli.errors import ConfigError
from voxcli.tools.builtin import BuiltinTool
from voxcli.tools.toolbox import FixedTools, Toolbox

ROOT = Path(__file__).parent.parent.parent
PROGRAM = "import json, sys; print(json.load(sys.stdin))"


@dataclass
class Opening:
    """Opens toolboxes, and keeps what it is told."""

    folder: Path
    stack: ExitStack
    notices: list[str] = field(default_factory=list)
    asked: list[ToolCall] = field(default_factory=list)

    def settings(self, text: str) -> Settings:
        path = self.folder / "my.toml"
        path.write_text(text.replace("PYTHON", sys.executable).replace("ROOT", str(ROOT)))
        return load(path, {}, {})

    def approve(self, call: ToolCall, _interrupt: threading.Event) -> bool:
        self.asked.append(call)
        return False

    def toolbox(self, text: str, *, wait: bool = False) -> Toolbox:
        opened = open_toolbox(self.settings(text), self.approve, self.stack, self.notices.append, wait=wait)
        assert opened is not None
        return opened

    def status(self, box: Toolbox, name: str, arguments: str = "{}") -> str:
        return box.run(ToolCall("1", name, arguments), threading.Event()).status


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opening]:
    with ExitStack() as stack:
        yield Opening(tmp_path, stack)


def test_without_tools_there_is_no_toolbox(opening: Opening) -> None:
    settings = opening.settings("[tools]\nmax_calls = 3\n")
    assert not has_tools(settings)
    assert open_toolbox(settings, opening.approve, opening.stack, opening.notices.append) is None
    assert listed_tools(settings, opening.stack, opening.notices.append) == []


def test_no_variable_holds_the_keys_of_two_servers(opening: Opening) -> None:
    pytest.importorskip("mcp")
    with pytest.raises(
        ConfigError, match=r"mcp\.my-house and mcp\.my_house would share the key in VOXCLI_MCP_MY_HOUSE_"
    ):
        opening.toolbox('[mcp.my-house]\nurl = "http://127.0.0.1:9/a"\n[mcp.my_house]\nurl = "http://127.0.0.1:9/b"\n')


A, A_B = "[mcp.a]", "[mcp.a_b]"  # The first has a tool b_c, the second a tool c: both would be a_b_c.


def two_servers(opening: Opening, order: tuple[str, str]) -> str:
    """Return settings with both servers in some order; results of tools say who ran."""
    tables = {A: ("b_c", "x"), A_B: ("c",)}
    text = ""
    for table in order:
        path = opening.folder / f"{table[5:-1]}.json"
        said = {"content": [{"type": "text", "text": table}]}
        listed = [{"name": name, "inputSchema": {"type": "object"}} for name in tables[table]]
        path.write_text(json.dumps({"tools": listed, "results": dict.fromkeys(tables[table], said)}))
        program = f"['PYTHON', 'ROOT/tests/support/old_mcp_server.py', '{path}']"
        text += f"{table}\ncommand = {program}\napproval = 'always'\n"
    return text


@pytest.mark.parametrize("order", [(A, A_B), (A_B, A)])
def test_a_name_belongs_to_one_server_whatever_their_order(opening: Opening, order: tuple[str, str]) -> None:
    pytest.importorskip("mcp")
    box = opening.toolbox(two_servers(opening, order), wait=True)
    assert sorted(box.tools) == ["a_b_c", "a_x"]
    assert box.run(ToolCall("1", "a_b_c", "{}"), threading.Event()).text == A_B
    assert opening.notices == ["a: its tool a_b_c can't be used: tools of mcp.a_b have such names"]


@pytest.mark.parametrize("order", [(A, A_B), (A_B, A)])
def test_allow_tool_starts_and_allows_the_server_that_it_names(opening: Opening, order: tuple[str, str]) -> None:
    pytest.importorskip("mcp")
    settings = opening.settings(two_servers(opening, order))
    tools = open_allowed_tools(settings, ["a_b_c"], opening.stack, opening.notices.append)
    assert tools is not None
    assert tools.run(ToolCall("1", "a_b_c", "{}"), threading.Event()).text == A_B
    gone = settings.model_copy(update={"mcp": {**settings.mcp, "a_b": settings.mcp["a"]}})
    with pytest.raises(ConfigError, match="there is no tool a_b_c"):
        open_allowed_tools(gone, ["a_b_c"], opening.stack, opening.notices.append)


def test_limits_and_approvals_are_those_of_the_settings(opening: Opening) -> None:
    box = opening.toolbox(
        """
        [tools]
        builtin = ["time"]
        max_calls = 3
        output_characters = 100
        approvals = {quiet = "never", loud = "always", timr = "never"}
        [tools.plain]
        command = ['PYTHON', "-c", "pass"]
        [tools.quiet]
        command = ['PYTHON', "-c", "pass"]
        [tools.loud]
        command = ['PYTHON', "-c", "print('x' * 1000)"]
        """
    )
    assert box.max_calls == 3
    assert [spec.name for spec in box.specs] == ["time", "plain", "loud"]
    assert opening.status(box, "plain") == "refused"
    assert opening.status(box, "quiet") == "malformed"
    assert opening.asked == [ToolCall("1", "plain", "{}")]
    loud = box.run(ToolCall("1", "loud", "{}"), threading.Event())
    assert loud.text.startswith("x" * 100 + "\n[cut")
    assert opening.status(box, "time") == "done"
    assert opening.notices == ["tools.approvals names timr, which is no tool here"]


def test_parameters_may_be_a_table_or_json(opening: Opening) -> None:
    box = opening.toolbox(
        """
        [tools.table]
        command = ['PYTHON', "-c", "pass"]
        parameters.properties.city = {type = "string"}
        [tools.text]
        command = ['PYTHON', "-c", "pass"]
        parameters = '{"properties": {"city": {"type": "string"}}}'
        """
    )
    table, text = box.specs
    assert table.parameters == text.parameters == {"type": "object", "properties": {"city": {"type": "string"}}}
    assert opening.status(box, "text", '{"city": 1}') == "malformed"


def test_timers_are_there_where_they_can_speak_up(opening: Opening) -> None:
    settings = opening.settings('[tools]\nbuiltin = ["timer"]\n')
    assert open_toolbox(settings, opening.approve, opening.stack, opening.notices.append) is None
    box = open_toolbox(
        settings, opening.approve, opening.stack, opening.notices.append, announce=opening.notices.append
    )
    assert box is not None
    assert opening.status(box, "timer", '{"action": "set", "hours": 1}') == "done"
    opening.stack.close()
    assert opening.status(box, "timer", '{"action": "set", "hours": 1}') == "failed"


def test_tools_of_others_come_first(opening: Opening) -> None:
    mine = BuiltinTool("time", "Mine.", {}, lambda _arguments: "mine")
    box = open_toolbox(
        opening.settings('[tools]\nbuiltin = ["time"]\n'),
        opening.approve,
        opening.stack,
        opening.notices.append,
        further=[FixedTools((mine,))],
    )
    assert box is not None
    assert box.specs == (ToolSpec("time", "Mine."),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tools]\nbuiltin = ["time"]\n[tools.time]\ncommand = ["x"]', "tools.time has the name of a built-in tool"),
        ('[tools.a]\ncommand = ["x"]\nparameters = {city = {type = "string"}}', "tools.a.parameters can't be used"),
        ('[tools.a]\ncommand = ["x"]\nparameters = {type = "text"}', "tools.a.parameters can't be used"),
        ('[mcp.a]\nurl = "localhost:8000"', "the server's URL localhost:8000"),
        ('[mcp.a]\nurl = "http://me:secret@localhost/mcp"', "the server's URL carries a name or password"),
    ],
)
def test_what_can_be_no_tool_is_refused(opening: Opening, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opening.toolbox(text)
    assert caught.value.message.startswith(message)
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_a_missing_program_is_told_and_the_others_work(opening: Opening) -> None:
    box = opening.toolbox('[tools.a]\ncommand = ["no-such"]\n[tools]\nbuiltin = ["time"]\n')
    assert opening.notices == ["tools.a can't be run: there is no program no-such"]
    assert opening.status(box, "time") == "done"


def test_servers_are_started_together_and_broken_ones_told(opening: Opening, tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    (tmp_path / "script.json").write_text('{"tools": [{"name": "it", "inputSchema": {"type": "object"}}]}')
    text = f"""
        [tools]
        approvals = {{well_it = "always", well_typo = "never"}}
        [mcp.well]
        command = ['PYTHON', "ROOT/tests/support/old_mcp_server.py", "{tmp_path}/script.json"]
        [mcp.ill]
        command = ["no-such-server"]
        """
    box = opening.toolbox(text, wait=True)
    assert [spec.name for spec in box.specs] == ["well_it"]
    assert opening.status(box, "well_it") == "done"
    assert opening.notices == ["the tools of mcp.ill are missing: there is no program no-such-server"]
    settings = opening.settings(text)
    assert [(tool.name, tool.source, tool.approval) for tool in listed_tools(settings, opening.stack, print)] == [
        ("well_it", "mcp.well", "always")
    ]
    assert broken_tools(settings) == opening.notices


def test_a_key_comes_from_the_variable_of_its_server(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mcp")
    monkeypatch.setenv("VOXCLI_MCP_MY_HOUSE_API_KEY", "top-secret")
    seen: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def refuse() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        seen.append(connection.recv(65_536))
                        connection.sendall(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        opening.toolbox(f'[mcp.my-house]\nurl = "{url}"\n', wait=True)
    assert b"authorization: bearer top-secret" in seen[0].lower()
    assert opening.notices == [
        "the tools of mcp.my-house are missing: it refuses access (HTTP 403): "
        "check the key from VOXCLI_MCP_MY_HOUSE_API_KEY"
    ]


def test_doctor_has_a_line_only_for_what_does_not_work() -> None:
    assert diagnostics.tools([]).well
    found = diagnostics.tools(["tools.a can't be run: there is no program x", "another"])
    assert (found.well, found.blocks) == (False, False)
    assert found.found == "tools.a can't be run: there is no program x (and 1 more)"


def test_a_persona_may_call_some_of_the_tools(opening: Opening) -> None:
    text = """
        [tools]
        builtin = ["time", "remember", "forget"]
        approvals = {tiem = "never"}
        [personas.clerk]
        tools = ["t*"]
    """
    assert names(opening.toolbox(text)) == ["time", "remember", "forget"]
    assert names(opening.toolbox(f'persona = "clerk"\n{text}')) == ["time"]
    assert any("tiem" in notice for notice in opening.notices)
    silent = opening.settings(f'persona = "interpreter"\n{text}')
    assert open_toolbox(silent, opening.approve, opening.stack, opening.notices.append) is None


def names(toolbox: Toolbox) -> list[str]:
    return list(toolbox.tools)
