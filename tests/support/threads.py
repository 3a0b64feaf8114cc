"""A call in a thread of its own, whose result is waited for later."""

from __future__ import annotations

import threading


def in_thread(call):
    """Runs ``call`` in a thread; a function that waits for its result, or its error."""
    found = []

    def run():
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(20)
        return found[0]

    return result
