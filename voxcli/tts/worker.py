"""The process in which pyttsx3 runs, because it may hang, crash or print, and can't be stopped otherwise.

    python -P worker.py FOLDER

A request is a JSON object on a line of standard input, its answer a JSON object on a line of standard
output; nothing else ever reaches that. When standard input ends, because whoever asks has closed it or
was killed, the process removes FOLDER and ends at once, whatever pyttsx3 is doing.

    {"do": "voices"}                              {"voices": [{"id", "name", "languages"}, ...]}
    {"do": "set", "voice": ID|null, "rate": WPM}  {}
    {"do": "render", "text": ..., "path": ...}    {}
    where it fails                                {"error": ...}

It imports nothing of voxcli, so that it starts quickly, and takes no text as a command: the text goes
to the engine's library as a value.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes standard input
    answers = _take_stdout()
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, folder), daemon=True).start()
    engine: Any = None
    while True:
        request = json.loads(requests.get())
        try:
            engine = engine or _open_engine()
            answer = _answer(engine, request)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is the parent's to report
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _take_stdout() -> TextIO:
    """Return standard output for answers alone; what pyttsx3 and its libraries print goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return answers


def _read(requests: SimpleQueue[str], folder: str) -> None:
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
            return {"voices": [_voice(voice) for voice in engine.getProperty("voices")]}
        case "set":
            if request["voice"] is not None:
                engine.setProperty("voice", request["voice"])
            engine.setProperty("rate", request["rate"])
        case "render":
            _render(engine, request["text"], request["path"])
    return {}


def _voice(voice: Any) -> dict[str, Any]:
    """Return a voice as JSON; some drivers give languages as bytes with a length in front."""
    languages = [
        language.decode("utf-8", "ignore").lstrip("\x05\x02") if isinstance(language, bytes) else str(language)
        for language in voice.languages or ()
        if language
    ]
    return {"id": str(voice.id), "name": str(voice.name), "languages": languages}


def _render(engine: Any, text: str, path: str) -> None:
    """Render text into a file; pyttsx3 hides errors in notifications, so they are raised here."""
    errors: list[Exception] = []
    token = engine.connect("error", lambda exception, **_: errors.append(exception))
    try:
        engine.save_to_file(text, path)
        if engine.driver_name == "espeak":
            engine.proxy.startLoop(True)  # ends when espeak's own thread is done; runAndWait() would not wait for it
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
