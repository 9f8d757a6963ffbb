"""The composition root: builds a chat, a single turn, a batch run or a check-up from the settings.

Commands and benchmarks call it. It opens the parts, those first that are cheap and may be refused; an exit stack
closes them.
"""
