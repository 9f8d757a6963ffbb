"""Make a random Voxtral checkpoint of 2 MB: the real classes and file formats, no knowledge in the weights.

python -m tests.support.tiny_voxtral FOLDER
voxcli once question.wav --engine voxtral --model FOLDER
"""

import json
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

VOCABULARY = 2048
CONTROL_TOKENS = 100  # as many control tokens as ids are set aside for here; the rest of the ids are text
NAMED_CONTROL_TOKENS = {
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


def make(folder: Path, *, window_seconds: int = 30, max_positions: int = 131_072) -> Path:
    """Write the checkpoint into `folder`; the same bytes each time.

    Args:
        window_seconds: how much audio the encoder takes at once (2 * max_source_positions mel frames).
        max_positions: the longest prompt and reply together, in tokens.
    """
    import torch
    from transformers.tokenization_mistral_common import MistralCommonBackend

    classes = _transformers()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    model = classes.VoxtralForConditionalGeneration(_config(window_seconds * 50, max_positions))
    model.generation_config = classes.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=11)
    model.save_pretrained(folder)
    with tempfile.TemporaryDirectory() as elsewhere:  # older releases of transformers can't copy a file to itself
        file = Path(elsewhere) / "tekken.json"
        file.write_text(json.dumps(tekken(window_seconds)))
        tokenizer = MistralCommonBackend(tokenizer_path=str(file))
        classes.VoxtralProcessor(classes.WhisperFeatureExtractor(feature_size=128), tokenizer).save_pretrained(folder)
    return folder


def _config(max_source_positions: int, max_positions: int) -> Any:
    return _transformers().VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "hidden_size": 32,
            "intermediate_size": 128,  # four times the hidden size: so many positions become one audio token
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": 128,
            "max_source_positions": max_source_positions,
            "initializer_range": 0.3,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": max_positions,
            "initializer_range": 0.3,  # wide enough for replies that depend on the prompt
            "tie_word_embeddings": False,
        },
        audio_token_id=24,
        initializer_range=0.3,
    )


def _transformers() -> Any:
    """Return the package; what is typed in it is typed in part."""
    import transformers

    return transformers


def tekken(window_seconds: int, vocabulary: int = VOCABULARY, control_tokens: int = CONTROL_TOKENS) -> dict[str, Any]:
    """Return a tokenizer file: a prefix of the ranks of mistral-common's own one is a valid BPE.

    Args:
        window_seconds: how much audio the encoder takes at once.
        vocabulary: number of ids, control tokens included.
        control_tokens: number of ids that are set aside for them.
    """
    import mistral_common

    source = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    whole = json.loads(source.read_text(encoding="utf-8"))
    controls = [NAMED_CONTROL_TOKENS.get(rank, f"<SPECIAL_{rank}>") for rank in range(control_tokens)]
    return {
        "config": {
            **whole["config"],
            "default_vocab_size": vocabulary,
            "default_num_special_tokens": control_tokens,
            "version": "v7",
        },
        "vocab": list(islice(whole["vocab"], vocabulary - control_tokens)),
        "special_tokens": [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(controls)],
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "chunk_length_s": float(window_seconds),
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        },
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]))
