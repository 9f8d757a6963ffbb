"""Make a tiny Voxtral in Mistral's own format for vLLM, which fills in random weights itself.

The tokenizer has the size of the published one: 131,072 ids, 1000 of them for control tokens.

python -m tests.support.tiny_mistral FOLDER
"""

import json
import sys
from pathlib import Path

from benchmarks.tekken import tekken

VOCABULARY, CONTROL_TOKENS = 131_072, 1000
FRONT_END = {"sampling_rate": 16000, "frame_rate": 12.5, "num_mel_bins": 128, "hop_length": 160, "window_size": 400}
ENCODER = {
    "dim": 128,
    "n_layers": 2,
    "head_dim": 64,
    "hidden_dim": 512,
    "n_heads": 2,
    "vocab_size": 51866,
    "max_source_positions": 1500,
    "audio_encoding_args": FRONT_END,
}
MODEL = {
    "dim": 256,
    "n_layers": 2,
    "head_dim": 64,
    "hidden_dim": 512,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "rope_theta": 1e8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32768,
    "multimodal": {"whisper_model_args": {"encoder_args": ENCODER, "downsample_args": {"downsample_factor": 4}}},
}


def make(folder: Path) -> Path:
    """Write the model's parameters and its tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(MODEL))
    (folder / "tekken.json").write_text(json.dumps(tekken(VOCABULARY, CONTROL_TOKENS)))
    return folder


if __name__ == "__main__":
    make(Path(sys.argv[1]))
