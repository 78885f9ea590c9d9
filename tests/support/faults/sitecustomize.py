"""Faults for processes under test, put into them by way of PYTHONPATH.

`FAULT_AT=role:call:number:what` strikes at the n-th call (from 1) of an `os` function in the parent
or in each worker: `kill` ends the process as `kill -9` does, `group` its whole process group, the
name of an `errno` raises that error. `FAULT_OPEN_DELAY_S` makes every open of an object file slow.
With `LOOPBACK_ONLY` a connection to any address but 127.0.0.1 ends the process with code 97.
"""

import errno
import os
import signal
import sys
import time

_IS_WORKER = "-c" in sys.orig_argv[:4]


def _strike(what):
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "group":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    else:
        code = getattr(errno, what)
        raise OSError(code, os.strerror(code))


def _wrap(name, number, what):
    real = getattr(os, name)
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            _strike(what)
        return real(*args, **kwargs)

    setattr(os, name, wrapped)


def _delay(seconds):
    real = os.open

    def slow_open(path, flags, *args, **kwargs):
        if not flags & os.O_CREAT and str(path).endswith((".npy", ".pkl")):
            time.sleep(seconds)
        return real(path, flags, *args, **kwargs)

    os.open = slow_open


if "FAULT_AT" in os.environ:
    role, name, number, what = os.environ["FAULT_AT"].split(":")
    if (role == "worker") == _IS_WORKER:
        _wrap(name, int(number), what)
if "FAULT_OPEN_DELAY_S" in os.environ:
    _delay(float(os.environ["FAULT_OPEN_DELAY_S"]))


def _loopback_only():
    import socket

    real = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
            # Beyond what any handler could swallow.
            os.write(2, f"LOOPBACK_ONLY: a request to {address}\n".encode())
            os._exit(97)
        return real(self, address)

    socket.socket.connect = connect


if os.environ.get("LOOPBACK_ONLY"):
    _loopback_only()
