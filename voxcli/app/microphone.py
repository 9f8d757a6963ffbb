"""Tells why a microphone delivers only zeros: it is muted, or the system does not permit recording."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from voxcli.chat.devices.microphone import SILENT_MICROPHONE

QUERY_SECONDS = 2.0
MUTED = "the microphone is muted: it delivers only zeros"
NOT_PERMITTED = "the system does not permit recording: the microphone delivers only zeros"
MUTES = (  # Linux: a query, the answer of a muted microphone, the command that unmutes it.
    (("pactl", "get-source-mute", "@DEFAULT_SOURCE@"), "mute: yes", "pactl set-source-mute @DEFAULT_SOURCE@ 0"),
    (("wpctl", "get-volume", "@DEFAULT_AUDIO_SOURCE@"), "[muted]", "wpctl set-mute @DEFAULT_AUDIO_SOURCE@ 0"),
    (("amixer", "get", "Capture"), "[off]", "amixer set Capture cap"),
)
MAC_VOLUME = ("osascript", "-e", "input volume of (get volume settings)")
MAC_UNMUTE = "osascript -e 'set volume input volume 70'"
MAC_PERMIT = (
    "open 'x-apple.systempreferences:com.apple.preference.security?Privacy_Microphone', and allow your terminal"
)
WINDOWS_KEY = r"HKCU\Software\Microsoft\Windows\CurrentVersion\CapabilityAccessManager\ConsentStore\microphone"
WINDOWS_PERMIT = "start ms-settings:privacy-microphone, and let desktop apps use the microphone"
WINDOWS_UNMUTE = "start ms-settings:sound, and unmute it"

Query = Callable[[Sequence[str]], str]  # runs a command and returns what it prints, in lower case


def why_silent(query: Query, system: str = sys.platform) -> tuple[str, str]:
    """Return why a microphone delivers only zeros, as far as the system tells, and what mends it."""
    if system == "darwin":
        # macOS gives zeros to a program without permission, and does not tell a program of the terminal which it is.
        return (MUTED, MAC_UNMUTE) if query(MAC_VOLUME).strip() == "0" else (NOT_PERMITTED, MAC_PERMIT)
    if system == "win32":
        keys = (WINDOWS_KEY, rf"{WINDOWS_KEY}\NonPackaged")
        denied = any("deny" in query(("reg", "query", key, "/v", "Value")) for key in keys)
        return (NOT_PERMITTED, WINDOWS_PERMIT) if denied else (SILENT_MICROPHONE, WINDOWS_UNMUTE)
    for command, answer, unmute in MUTES:
        if answer in query(command):
            return MUTED, unmute
    return SILENT_MICROPHONE, "unmute it, raise its level, or choose another: voxcli devices"


def no_access(folder: Path = Path("/dev/snd")) -> str:
    """Return the command that lets this user use sound cards that exist; empty if nothing forbids it."""
    cards = [*folder.glob("pcm*")]
    if not cards or any(os.access(card, os.R_OK | os.W_OK) for card in cards):
        return ""
    return 'sudo usermod -aG audio "$USER", then log in again'


def run_query(command: Sequence[str]) -> str:
    """Run a command and return what it prints, in lower case; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.lower()
