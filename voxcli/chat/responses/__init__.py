"""The responses of a live conversation: speculative replies, turns, and the history that they become."""
