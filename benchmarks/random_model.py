"""Makes Voxtral models with random weights in the shapes of the real ones, on the device that runs them.

Speed does not depend on the weights, so a machine without a checkpoint can measure too. The result is a
`VoxtralForConditionalGeneration`, as if it had been loaded. `open_model` also loads local checkpoints.
"""

from typing import Any

import torch
import transformers

from voxcli.engines.voxtral.checkpoint import catalog, files
from voxcli.engines.voxtral.device import placement
from voxcli.engines.voxtral.device.hardware import Hardware
from voxcli.errors import ConfigError, ModelError
from voxcli.printable import first_line

RANDOM = "random:"
STD = 0.02  # standard deviation of the weights; activations stay finite in bfloat16
SEED = 7
AUDIO_ID, PAD_ID = 24, 11

WHISPER_LARGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
MISTRAL_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}

# Audio encoder and text model. `mini` and `small` are Voxtral-Mini-3B-2507 and Voxtral-Small-24B-2507.
SHAPES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "mini": (
        WHISPER_LARGE,
        {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30, "vocab_size": 131_072}
        | MISTRAL_HEADS,
    ),
    "small": (
        WHISPER_LARGE,
        {"hidden_size": 5120, "intermediate_size": 32_768, "num_hidden_layers": 40, "vocab_size": 131_072}
        | MISTRAL_HEADS,
    ),
    "150m": (  # few wide layers, so that a CPU computes rather than dispatches, as a GPU does with mini
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8},
        {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 3, "vocab_size": 8192}
        | {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 128},
    ),
    "200m": (  # narrow layers, in which attention to the history weighs most
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8},
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32_768}
        | {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64},
    ),
    "tiny": (
        {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2048}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    ),
}


def config_of(shape: str) -> Any:
    """Return the `VoxtralConfig` of one of `SHAPES`."""
    audio, text = SHAPES[shape]
    classes: Any = transformers
    return classes.VoxtralConfig(
        audio_config={"model_type": "voxtral_encoder", "num_mel_bins": 128, "max_source_positions": 1500, **audio},
        text_config={
            "model_type": "llama",
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": False,
            **text,
        },
        audio_token_id=AUDIO_ID,
    )


def open_model(model: str, device: str) -> Any:
    """Return a model that is ready to run. Its configuration has no end id, so that only the length ends a reply.

    Args:
        model: random:SHAPE, or the short name, hub id or folder of a local checkpoint.
        device: auto, cuda, cuda:N, mps or cpu.

    Raises:
        ConfigError: no such shape, or no such device.
        ModelError: no such local checkpoint, not enough memory, or a device that torch can't use.
    """
    made = _make(model.removeprefix(RANDOM), device) if model.startswith(RANDOM) else _load(model, device)
    classes: Any = transformers
    made.generation_config = classes.GenerationConfig(pad_token_id=PAD_ID)
    return made.eval().requires_grad_(False)


def default_model(device: str) -> str:
    """Return the default model of a device; on a CPU, a small one that takes minutes."""
    gpu = device != "cpu" and Hardware.look(torch, device).best != "cpu"
    return RANDOM + ("mini" if gpu else "150m")


def _make(shape: str, device: str) -> Any:
    if shape not in SHAPES:
        raise ConfigError(f"there is no random model {shape!r}", hint=f"one of {', '.join(SHAPES)}, after {RANDOM}")
    classes: Any = transformers
    config = config_of(shape)
    with torch.device("meta"):  # no memory yet, and no slow initialisation
        model = classes.VoxtralForConditionalGeneration(config)
    where = placement.place(device, Hardware.look(torch, device), model.num_parameters())
    model = model.to(getattr(torch, where.dtype)).to_empty(device=where.device)
    audio, text = model.model.audio_tower, model.model.language_model
    audio.embed_positions.float()  # transformers keeps these in float32
    text.rotary_emb = type(text.rotary_emb)(config.text_config).to(where.device)  # its table is not a weight
    _fill(model)
    return model


@torch.no_grad()
def _fill(model: Any) -> None:
    source = torch.Generator(model.device).manual_seed(SEED)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            weight.normal_(0.0, STD, generator=source)


def _load(model: str, device: str) -> Any:
    folder = catalog.locate(model)
    if folder is None:
        raise ModelError(f"{model} is not on this machine", hint=f"voxcli models pull {model}, or --model {RANDOM}mini")
    classes: Any = transformers
    where = placement.place(device, Hardware.look(torch, device), files.inspect(folder).parameters)
    try:
        loaded = classes.VoxtralForConditionalGeneration.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, where.dtype),
        )
        return loaded.to(where.device)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"can't load the checkpoint in {folder}: {first_line(error)}") from error
