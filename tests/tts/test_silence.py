"""Tests of trimming: what is loud stays, and the silence around it becomes short."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from voxcli.tts.silence import LEAD_SECONDS, trimmed

RATE = 24_000


@given(before=st.integers(0, 9000), loud=st.integers(600, 9000), after=st.integers(0, 9000))
def test_the_loud_part_stays_whole(before: int, loud: int, after: int) -> None:
    samples = np.concatenate([np.zeros(before), np.full(loud, 0.1), np.zeros(after)]).astype(np.float32)
    kept = trimmed(samples, RATE, gap_seconds=0.1)
    assert np.count_nonzero(kept) == loud
    assert np.argmax(kept > 0) <= (LEAD_SECONDS + 0.005) * RATE
    assert len(kept) - loud <= (LEAD_SECONDS + 0.1 + 0.01) * RATE


def test_of_silence_nothing_stays() -> None:
    assert len(trimmed(np.full(5000, 1e-4, np.float32), RATE, gap_seconds=0.1)) == 0
    assert len(trimmed(np.zeros(0, np.float32), RATE, gap_seconds=0.1)) == 0
