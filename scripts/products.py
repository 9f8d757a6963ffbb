"""Matrix products in float32 on this CPU: torch's own, beside those through oneDNN that voxcli may take.

    .venv/bin/python scripts/products.py

Each line is one matrix of a layer of `random:150m` and a number of tokens; the two ways take turns, best of 20.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from voxcli.engines import cpu

MATRICES = {"gate and up": (12_288, 1536), "down": (1536, 6144), "of the encoder": (2048, 512)}
TOKENS = (1, 8, 32, 378, 1500)
ROUNDS = 20


def seconds(compute: Callable[[], object]) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| matrix | tokens | torch's own, GFLOP/s | oneDNN, GFLOP/s | times as fast |\n|---|---|---|---|---|")
    for name, (rows, columns) in MATRICES.items():
        weight = torch.randn(rows, columns)
        for tokens in TOKENS:
            inputs = torch.randn(tokens, columns)
            times = [
                (seconds(lambda: F.linear(inputs, weight)), seconds(lambda: cpu.product(inputs, weight)))  # noqa: B023
                for _ in range(ROUNDS)
            ]
            own, onednn = (min(way) for way in zip(*times, strict=True))
            flop = 2e-9 * tokens * rows * columns
            speeds = f"{flop / own:.0f} | {flop / onednn:.0f} | {own / onednn:.2f}"
            print(f"| {name}, {rows} x {columns} | {tokens} | {speeds} |")


if __name__ == "__main__":
    main()
