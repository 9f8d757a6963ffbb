"""What listens in a conversation, as the settings say."""

from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import pytest

from voxcli.app.listening import open_listener
from voxcli.app.parts import load_settings
from voxcli.chat.devices.hotplug import AudioDevices


@pytest.mark.parametrize("setting", ["live.noise_suppression", "live.gain_control"])
def test_processing_that_the_canceller_would_do_is_reported_where_there_is_none(setting: str) -> None:
    settings = load_settings(None, {setting: True, "live.echo": "off", "live.end_of_turn": "silence"})
    microphone = SimpleNamespace(device=SimpleNamespace(name="headset"))
    devices = cast(AudioDevices, SimpleNamespace(speaker=None, microphone=microphone))
    notices: list[str] = []
    with ExitStack() as stack:
        _, echo = open_listener(settings, devices, lambda _message: None, notices.append, stack, None, kept=False)
    assert echo == "off"
    assert notices == ['there is no noise suppression and no gain control, because live.echo is "off"']
