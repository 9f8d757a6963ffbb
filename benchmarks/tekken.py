"""The tokenizer file of random checkpoints, cut from the data of mistral-common."""

import json
from pathlib import Path
from typing import Any

CONTROLS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    34: "[TRANSCRIBE]",
}
LATER_CONTROLS = {32: "[ARGS]", 33: "[CALL_ID]"}  # Control tokens that versions after v7 add.


def control_names(count: int) -> list[str]:
    """Return the names of the first `count` control tokens, by id."""
    return [CONTROLS.get(number, f"<SPECIAL_{number}>") for number in range(count)]


def tekken(vocabulary: int, control_tokens: int, window_seconds: float = 30.0, version: str = "v7") -> dict[str, Any]:
    """Return the content of a `tekken.json`. A prefix of the ranks of mistral-common's is a valid BPE.

    Args:
        vocabulary: number of ids, control tokens included.
        control_tokens: number of ids reserved for control tokens.
        window_seconds: length of audio that the encoder takes at once.
        version: v7 as in the published checkpoints, v11 or v13; it decides the layout of tools.
    """
    import mistral_common

    source = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    whole = json.loads(source.read_text(encoding="utf-8"))
    later = LATER_CONTROLS if version != "v7" else {}
    names = [(rank, later.get(rank, name)) for rank, name in enumerate(control_names(control_tokens))]
    sizes = {"default_vocab_size": vocabulary, "default_num_special_tokens": control_tokens}
    return {
        "config": {**whole["config"], **sizes, "version": version},
        "vocab": whole["vocab"][: vocabulary - control_tokens],
        "special_tokens": [{"rank": rank, "token_str": name, "is_control": True} for rank, name in names],
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "chunk_length_s": float(window_seconds),
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        },
    }
