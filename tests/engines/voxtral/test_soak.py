"""Memory does not grow over many turns of one conversation with a tiny Voxtral, in a process of its own.

SOAK_TURNS: number of turns; by default, as many as fill the context and drop the oldest turns.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TURNS = int(os.environ.get("SOAK_TURNS", "120"))
GROWTH = 1.02  # of resident memory, after turn 20

PROGRAM = """
import sys, threading
from pathlib import Path
import numpy as np
from voxcli.audio.clip import AudioClip
from voxcli.engines.voxtral.engine import VoxtralEngine
from voxcli.core.session import Session
from voxcli.core.turn import Utterance

PAGES = Path("/proc/self/statm")

def talk(engine, turns):
    session, most, fullest = Session(instructions="Answer briefly."), 0, 0
    for number in range(1, turns + 1):
        noise = np.random.default_rng(number).normal(0, 0.1, 16_000)
        utterance = Utterance(AudioClip(noise.astype(np.float32)))
        reply, text = engine.reply(session, utterance, threading.Event()), ""
        while True:
            try:
                text += next(reply)
            except StopIteration as end:
                fullest = max(fullest, end.value.cached_tokens)
                break
        session = session.add(utterance.answered(text))
        engine.prefill_history(session)
        pages = int(PAGES.read_text().split()[1])
        most = max(most, pages)
        if number == 20:
            print(pages)
    print(most, fullest)

engine = VoxtralEngine.load(
    Path(sys.argv[1]), name="tiny", device="cpu", max_reply_tokens=24, temperature=0.0, top_p=1.0,
    context_tokens=4096, notice=lambda _: None,
)
answering = threading.Thread(target=talk, args=(engine, int(sys.argv[2])))  # as in chat, not the thread that loaded
answering.start()
answering.join()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat_after_turn_20(tiny_voxtral: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_voxtral), str(TURNS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.split()
    at_20, most, fullest = map(int, output)
    assert most <= GROWTH * at_20
    assert fullest > 3000  # the context was full
