"""Processes that begin without what this one has made: threads, connections, memory."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from multiprocessing.context import BaseContext

SOCKET_PATH = 107  # bytes that the path of a Unix socket has at most
SOCKET = "/pymp-12345678/listener-12345678"  # where multiprocessing puts the fork server's, below the temporary folder


def fresh_context(*preload: str) -> BaseContext:
    """Of processes that a fork server forks. It imports the modules `preload` once, if it isn't at work already.

    Where there is no fork server, or the temporary folder (TMPDIR) has too long a name for its socket, processes are spawned:
    each imports by itself.
    """
    socket = os.fsencode(tempfile.gettempdir() + SOCKET)
    if "forkserver" not in multiprocessing.get_all_start_methods() or len(socket) > SOCKET_PATH:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def start_by_default() -> None:
    """Let this process start its own processes by the platform's default.

    A process that was spawned would spawn them otherwise: each decoding worker would import everything anew (6 s).
    """
    multiprocessing.set_start_method(None, force=True)
