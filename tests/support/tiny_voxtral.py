"""Make a random Voxtral checkpoint of 2 MB with the real classes and file formats.

python -m tests.support.tiny_voxtral FOLDER
voxcli once question.wav --engine voxtral --model FOLDER
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tekken import tekken

VOCABULARY = 2048
CONTROL_TOKENS = 100  # ids reserved for control tokens; the others are text


def make(folder: Path, *, window_seconds: int = 30, max_positions: int = 131_072, version: str = "v7") -> Path:
    """Write the checkpoint into `folder`; the same bytes each time.

    Args:
        window_seconds: length of audio that the encoder takes at once (2 * max_source_positions mel frames).
        max_positions: the longest prompt and reply together, in tokens.
        version: of the tokenizer.
    """
    import torch
    from transformers.tokenization_mistral_common import MistralCommonBackend

    classes = _transformers()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    model = classes.VoxtralForConditionalGeneration(_config(window_seconds * 50, max_positions))
    model.generation_config = classes.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=11)
    model.save_pretrained(folder)
    with tempfile.TemporaryDirectory() as elsewhere:  # old releases of transformers can't copy a file to itself
        file = Path(elsewhere) / "tekken.json"
        file.write_text(json.dumps(tekken(VOCABULARY, CONTROL_TOKENS, window_seconds, version)))
        tokenizer = MistralCommonBackend(tokenizer_path=str(file))
        classes.VoxtralProcessor(classes.WhisperFeatureExtractor(feature_size=128), tokenizer).save_pretrained(folder)
    return folder


def _config(max_source_positions: int, max_positions: int) -> Any:
    return _transformers().VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "hidden_size": 32,
            "intermediate_size": 128,  # four positions of the hidden size become one audio token
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
    """Return the package untyped, because its types are incomplete."""
    import transformers

    return transformers


if __name__ == "__main__":
    make(Path(sys.argv[1]))
