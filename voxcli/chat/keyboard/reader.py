"""Reads the keys of the terminal on a thread while a conversation runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from voxcli.chat.keyboard.keys import Key, Keys
from voxcli.chat.messages import ThreadCrashed, crashes_posted

READ_SECONDS = 0.1  # how long to wait for a key before checking whether the conversation is over


@contextmanager
def keys_posted(keys: Keys | None, post: Callable[[Key | ThreadCrashed], None]) -> Iterator[None]:
    """Post each key for the time of the context; do nothing if `keys` is None."""
    if keys is None:
        yield
        return
    over = threading.Event()

    def read() -> None:
        with crashes_posted(post):
            while not over.is_set():
                if key := keys.read(READ_SECONDS):
                    post(key)

    reader = threading.Thread(target=read, name="keys", daemon=True)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()
