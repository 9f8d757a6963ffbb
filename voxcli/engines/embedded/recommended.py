"""Recommends larger models for the embedded engine, by memory and cores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A Whisper size and an answering model, with the machine that they are for."""

    free_gb: float  # memory that has to be free, in GB
    cores: int
    whisper: str
    answer_model: str  # The name for `voxcli models pull`.
    fetched_gb: float  # size of both downloads, in GB

    @property
    def title(self) -> str:
        return f"Whisper {self.whisper} + {self.answer_model.rpartition(':')[2].removesuffix('.gguf')}"


# None of these was measured with voxcli: no machine of the project reaches a hub. Sizes are those that the hub gives.
# Memory is that of the downloads, a context of 8192 tokens and 1 GB of room. A core reads 5 to 10 GB/s, and a token
# takes one reading of the answering model, so cores are for about 10 tokens a second, more than speech needs.
PAIRS = (
    Pair(3.5, 4, "small", "Qwen/Qwen2.5-1.5B-Instruct-GGUF:qwen2.5-1.5b-instruct-q4_k_m.gguf", 1.6),
    Pair(6.0, 6, "small", "Qwen/Qwen3-4B-GGUF:Qwen3-4B-Q4_K_M.gguf", 3.0),
    Pair(10.0, 12, "medium", "Qwen/Qwen3-8B-GGUF:Qwen3-8B-Q4_K_M.gguf", 6.6),
)


def recommended(free_bytes: int | None, cores: int) -> Pair | None:
    """Return the largest pair for a machine; None if those that come with the engine suit it best."""
    fitting = [pair for pair in PAIRS if free_bytes and free_bytes >= pair.free_gb * 1e9 and cores >= pair.cores]
    return fitting[-1] if fitting else None
