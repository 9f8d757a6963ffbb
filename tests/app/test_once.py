"""A single turn: what it shows of an engine that is silent once its reply is complete."""

import io
import json
import threading
from itertools import repeat

import numpy as np
import pytest

from voxcli.app.once import OnceOptions, SingleTurn
from voxcli.app.views import JsonView, TextView, View
from voxcli.audio.clip import AudioClip
from voxcli.core.memory import Memory
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.core.testing import FakeEngine
from voxcli.output import Output

REASON = "the model wrote nothing for 0.01 s"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_reply_is_shown_and_remembered_though_the_line_never_comes(as_json: bool) -> None:
    engine, memory = FakeEngine([["Paris."]]), Memory(Session(), understood="show")
    engine.understands.append(repeat(""))
    out, notes = io.StringIO(), io.StringIO()
    view: View = JsonView(Output(out)) if as_json else TextView(Output(out), Output(notes))
    utterance = Utterance(AudioClip(np.zeros(16_000, np.float32)))
    turn = SingleTurn(OnceOptions("q.wav"), memory, engine, utterance, None, 0.0, silence_seconds=0.01)
    turn.answer(view, threading.Event())
    assert memory.session.turns[0].reply == "Paris."
    if as_json:
        record = json.loads(out.getvalue())
        assert (record["reply"], record["understood"], record["not_understood"]) == ("Paris.", None, REASON)
    else:
        assert out.getvalue() == "Paris.\n"
        assert f"what you said is not known: {REASON}" in notes.getvalue().splitlines()
