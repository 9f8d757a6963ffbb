"""A process that implements the protocol of `voxcli.tts.worker` without a speech engine, and can misbehave.

    python speech_worker.py STARTS BEHAVIOUR... FOLDER

STARTS is a file to which each process appends a line. The nth process takes the nth BEHAVIOUR, and all later ones take
the last.
"""

import json
import sys
import threading
import wave
from pathlib import Path


def main() -> None:
    starts, *behaviours, _folder = sys.argv[1:]
    with Path(starts).open("a+") as file:
        print("started", file=file)
        file.seek(0)
        behaviour = behaviours[min(len(file.readlines()), len(behaviours)) - 1]
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(answer(request, behaviour) + "\n")
        sys.stdout.flush()


def answer(request: dict[str, str], behaviour: str) -> str:
    if behaviour == "no engine":
        return json.dumps({"error": "RuntimeError: eSpeak is not there"})
    if request["do"] == "render":
        if behaviour.startswith("note "):
            with Path(behaviour.removeprefix("note ")).open("a") as file:
                print(request["text"], file=file)
        misbehave(behaviour)
        if behaviour == "garble":
            return "Audio saved to"
        if behaviour == "refuse":
            return json.dumps({"error": "ValueError: no"})
        if behaviour != "no file":
            render(request["path"])
    return json.dumps({"voices": [{"id": "en", "name": "English", "languages": ["en"]}]})


def misbehave(behaviour: str) -> None:
    match behaviour:
        case "hang":
            threading.Event().wait()
        case "die":
            sys.exit("first line\nespeak: out of phonemes\n")


def render(path: str) -> None:
    with wave.open(path, "wb") as file:
        file.setparams((2, 2, 22_050, 0, "NONE", ""))
        file.writeframes(b"\x00\x40\x00\x00" * 2205)


if __name__ == "__main__":
    main()
