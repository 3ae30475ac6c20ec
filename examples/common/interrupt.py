"""Ctrl-C that lets an update finish."""

from __future__ import annotations

import signal


class CtrlC:
    """Within this context the first Ctrl-C only sets ``pressed``; a second one interrupts as usual."""

    pressed = False

    def __enter__(self) -> CtrlC:
        self.previous = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, *_: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)
