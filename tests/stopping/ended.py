"""A process to be stopped: python ended.py STAGE HANG; says "ready" and hangs.

STAGE: start, work or loop. HANG: sleep, block (C code that serves no signal), fork,
save (sees the signal, and takes five seconds to save).
"""

import contextlib
import ctypes
import multiprocessing
import signal
import sys
import time

from tpmm_jax import stopping


def sleep():
    time.sleep(600)


def block():
    libc = ctypes.CDLL(None)
    every_signal = (ctypes.c_ulong * 16)(*[2**64 - 1] * 16)
    libc.sigsuspend(every_signal)


def fork():
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=time.sleep, args=(600,))
    worker.start()
    time.sleep(0.3)
    worker.terminate()
    worker.join()
    print("worker", worker.exitcode, "asked", stopping.asked(), flush=True)


def save():
    while not stopping.asked():
        time.sleep(0.05)
    time.sleep(5)
    print("saved", flush=True)


def main(stage, hang):
    function = {"sleep": sleep, "block": block, "fork": fork, "save": save}[hang]

    def say(text):
        print(text, flush=True)

    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping.watched())
        if stage != "start":
            stack.enter_context(stopping.watched(say))
        if stage == "loop":
            stack.enter_context(stopping.boundaries())
        say("ready")
        try:
            if hang == "save":
                function()
            else:
                stopping.call_user("scorer mine", function)
        except KeyboardInterrupt:
            say("unwound")
            return 75
        return 75 if stopping.asked() else 0


if __name__ == "__main__":
    # A shell's background job, as the tests may be, ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(*sys.argv[1:]))
