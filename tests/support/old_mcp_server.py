"""An MCP server of an earlier version of the protocol, without the package: what it says is in a file of JSON.

`python -m tests.support.old_mcp_server FILE`, with `{"tools": [...], "later": [...], "results": {NAME: {...}}}`. A call
of `change` makes it have the later tools; `noise` makes it write lines without end.
"""

import json
import sys
from pathlib import Path
from typing import Any


def write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say(**message: Any) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}))


def answer(request: dict[str, Any], script: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a request; None where there is none."""
    if request["method"] == "initialize":
        return {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "old", "version": "1"},
        }
    if request["method"] == "tools/list":
        return {"tools": script["tools"]}
    if request["method"] == "tools/call":
        name = request["params"]["name"]
        if name == "change":
            script["tools"] = script["later"]
            say(method="notifications/tools/list_changed")
        while name == "noise":
            write("x" * 1000)
        result: dict[str, Any] = script.get("results", {}).get(name, {"content": [{"type": "text", "text": "done"}]})
        return result
    return None


def main() -> None:
    script = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        result = answer(request, script)
        if result is None:
            say(id=request["id"], error={"code": -32601, "message": "Method not found"})
        else:
            say(id=request["id"], result=result)


if __name__ == "__main__":
    main()
