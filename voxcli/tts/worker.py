"""The worker process of pyttsx3, which may hang, crash or print, and can be stopped only by killing its process.

    python -P worker.py FOLDER

A request is a line of JSON on standard input, and its answer a line of JSON on standard output, which nothing else is
written to. When standard input ends, because the parent closed it or was killed, the process removes FOLDER and exits
at once, whatever pyttsx3 is doing.

    {"do": "voices"}                              {"voices": [{"id", "name", "languages", "default"}, ...]}
    {"do": "set", "voice": ID|null, "rate": WPM}  {}
    {"do": "render", "text": ..., "path": ...}    {}
    any request that fails                        {"error": ...}

The module imports nothing from voxcli, so it starts quickly. Text reaches the engine's library only as a value, never
as a command.
"""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO


def main(folder: str) -> None:
    """Answer requests until standard input ends; files are rendered into `folder`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles Ctrl-C and closes standard input.
    answers = _reserve_stdout()
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests, folder), daemon=True).start()
    engine: Any = None
    while True:
        request = json.loads(requests.get())
        try:
            engine = engine or _open_engine()
            answer = _answer(engine, request)
        except Exception as error:  # noqa: BLE001 - the parent reports any error of a driver
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _reserve_stdout() -> TextIO:
    """Return standard output for answers only; what pyttsx3 and its libraries print is discarded."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
    return answers


def _read_requests(requests: SimpleQueue[str], folder: str) -> None:
    for line in sys.stdin:
        requests.put(line)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _open_engine() -> Any:
    import pyttsx3  # type: ignore[import-untyped]

    return pyttsx3.init()


def _answer(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "voices":
            default = engine.getProperty("voice")
            return {"voices": [_voice(voice, default) for voice in engine.getProperty("voices")]}
        case "set":
            if request["voice"] is not None:
                engine.setProperty("voice", request["voice"])
            engine.setProperty("rate", request["rate"])
        case "render":
            _render(engine, request["text"], request["path"])
    return {}


def _voice(voice: Any, default: Any) -> dict[str, Any]:
    """Return a voice as JSON; some drivers give languages as bytes with a leading priority byte."""
    languages = [
        language.decode("utf-8", "ignore").lstrip("\x05\x02") if isinstance(language, bytes) else str(language)
        for language in voice.languages or ()
        if language
    ]
    identity = {"id": str(voice.id), "name": str(voice.name)}
    return {**identity, "languages": languages, "default": voice.id == default}


def _render(engine: Any, text: str, path: str) -> None:
    """Render text to a file; raises the errors that pyttsx3 only reports as notifications."""
    errors: list[Exception] = []
    token = engine.connect("error", lambda exception, **_: errors.append(exception))
    try:
        engine.save_to_file(text, path)
        if engine.driver_name == "espeak":
            engine.proxy.startLoop(True)  # Ends with espeak's own thread, which runAndWait() does not wait for.
        else:
            engine.runAndWait()
    finally:
        engine.disconnect(token)
    if errors:
        raise errors[0]
    if not Path(path).is_file():
        raise RuntimeError("the engine wrote no file")


if __name__ == "__main__":
    main(sys.argv[1])
