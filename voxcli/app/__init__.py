"""The composition root: builds a chat, a single turn, a batch run or doctor's checks from the settings.

Commands and benchmarks call it. Parts that are cheap to open and may fail are opened first; an exit stack closes them.
"""
