"""What a file may do to the child process that tries it."""

import os
import time


def dies(_: object) -> None:
    os.kill(os.getpid(), 11)


def hangs(_: object) -> None:
    time.sleep(600)


def grows(_: object) -> None:
    bytearray(8 << 30)
