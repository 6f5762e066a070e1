"""The server that training runs are forked from. It has already imported everything that they need.

This file does not import torch, so that a program can start the server before its own imports: the two take equally
long and need a core each.
"""

import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

from tinyllm.utils.platforms import blocked_signals

PRELOADED = (
    "hydra.main",
    "matplotlib.figure",
    "tinyllm.programs.resume",
    "tinyllm.programs.train",
    "tinyllm.models.transformer",
    "tinyllm.programs.forked_process",
    "tinyllm.train",
)
"""Modules that the server imports. Threads, CUDA and random streams are set up by the run itself."""


def can_fork() -> bool:
    """Whether runs can be forked here. Windows has neither fork nor sessions; frameworks of macOS fail after a fork."""
    return hasattr(os, "setsid") and sys.platform != "darwin"


def start_server() -> None:
    """Start the server, unless it runs. It imports in the background: started early, it is ready when a run is."""
    if not can_fork():
        return
    server_context()
    resource_tracker.ensure_running()  # the server needs it, and its start unblocks the signal
    # Inherited by the server: a Ctrl-C in the terminal is meant for this process, and would end its imports.
    with blocked_signals((signal.SIGINT,)):
        forkserver.ensure_running()


def server_context() -> ForkServerContext:
    """The context whose processes are forked from the server."""
    context = multiprocessing.get_context("forkserver")
    assert isinstance(context, ForkServerContext)
    context.set_forkserver_preload(list(PRELOADED))
    return context
