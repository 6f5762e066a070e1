"""``python -m tinyllm.serve``: load models, listen, serve until a signal."""

import math
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar

import torch
import uvicorn
from omegaconf import DictConfig
from starlette.types import ASGIApp

from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.inference.batching import Engine
from tinyllm.inference.generator import bos_of
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.generate import make_fast
from tinyllm.programs.load_model import SavedModel, model_of, open_saved
from tinyllm.programs.serve.app import create_app
from tinyllm.programs.serve.check import api_key, served_runs
from tinyllm.programs.serve.metrics import Metrics
from tinyllm.programs.serve.served import ServedModel
from tinyllm.programs.serve.server import Server
from tinyllm.programs.serve.worker import Worker
from tinyllm.utils.device import autocast, pick_device, pick_precision
from tinyllm.utils.listening import listen, url_of
from tinyllm.utils.memory import memory_for
from tinyllm.utils.text import print_note, quantity

T = TypeVar("T")
SMALL_BYTES = 2**23
"""Weights that one CPU reads in less than a millisecond."""


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Serve the models until SIGTERM or Ctrl-C. Returns the exit code: 1 if requests had to be cut off.

    Raises:
        UserError: the port is taken, or a model cannot be loaded.
    """
    runs = served_runs(cfg, program=invocation.program)
    key = api_key(cfg.serve.api_key)
    bound = listen(cfg.serve.host, cfg.serve.port, host_key="serve.host", port_key="serve.port")
    with closing(bound):  # bound before minutes of loading
        device = pick_device(cfg.device, key="device")
        # All of them are found before the first is loaded.
        saved = {
            name: open_saved(run, checkpoint=cfg.checkpoint, allow=invocation.allow, tell=print_note)
            for name, run in runs.items()
        }
        models = in_own_thread(
            lambda: [
                serve_model(name, one, cfg, run=runs[name], device=device, allow=invocation.allow)
                for name, one in saved.items()
            ]
        )
        limit_threads(models, device)
        metrics = Metrics()
        worker = Worker([served.engine for served in models], metrics, max_waiting=cfg.serve.max_waiting)
        app = create_app(
            models,
            worker,
            metrics,
            api_key=key,
            max_body_bytes=cfg.serve.max_body_bytes,
            cors=cfg.serve.cors or (),
        )
        for served in models:
            print_note(facts_line(served))
        print_note(f"listening on {url_of(bound)}/v1{'' if key else ', without an API key'}; Ctrl-C ends")
        return run_server(app, bound, worker, grace_s=cfg.serve.grace_s)


def serve_model(
    name: str,
    saved: SavedModel,
    cfg: DictConfig,
    *,
    run: str,
    device: torch.device,
    allow: frozenset[Option] = frozenset(),
) -> ServedModel:
    """Load the weights of a model and allocate its caches.

    Raises:
        UserError: the weights cannot be loaded, or not one context fits into ``serve.max_tokens_total``.
    """
    precision = pick_precision(cfg.precision, device)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    context, limit, max_batch = model.max_seq_len, cfg.serve.max_tokens_total, cfg.serve.max_batch
    if limit is not None and limit < context:
        hint = f"at least {context}, the context of {name}"
        raise UserError("the caches would not hold one context", key="serve.max_tokens_total", value=limit, hint=hint)
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    make_fast(model, saved, cfg, run=run, device=device, precision=precision, allow=allow)
    with memory_for(f"the caches of {name}", hint="lower serve.max_batch or serve.max_tokens_total"):
        engine = Engine(
            model,
            saved.tokenizer,
            max_batch=max_batch if limit is None else min(max_batch, limit // context),
            max_len=context,
            autocast=partial(autocast, device, precision),
        )
    template, why_no_chat = None, ""
    try:
        template = saved_template(saved)
        template.require(saved.tokenizer)
    except UserError as error:  # completions are served all the same; who asks for chat is told why not
        template, why_no_chat = None, error.what
    return ServedModel(
        name=name,
        engine=engine,
        bos=bos_of(model, saved.tokenizer, cfg.bos),
        special=cfg.special,
        created=int(Path(saved.path).stat().st_mtime),
        template=template,
        why_no_chat=why_no_chat,
        weight_bytes=weight_bytes,
    )


def in_own_thread(work: Callable[[], T]) -> T:
    """The result of ``work``, done in a thread that ends with it.

    OpenMP keeps threads for each thread that has ever computed. If those of loading stayed beside those of the thread
    that decodes, there would be more than CPUs, and all of them would sleep between two operations instead of waiting
    awake: steps would be a sixth longer (experiments/LOG.md).
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = Thread(target=run, name="loading", daemon=True)  # a signal need not wait for it
    thread.start()
    result = done.result()
    thread.join()
    return result


def limit_threads(models: Sequence[ServedModel], device: torch.device) -> None:
    """Let one thread compute small models, unless the environment says how many.

    Several mostly wait for each other there, on CPUs that the connections need: with ``model=nano`` on two of them, one
    thread answers a single client 1.2 times as fast as two, and 16 clients 1.1 times (experiments/LOG.md).
    """
    is_small = all(served.weight_bytes <= SMALL_BYTES for served in models)
    if device.type == "cpu" and is_small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def facts_line(served: ServedModel) -> str:
    """What is served, and the size of its caches."""
    engine = served.engine
    size = f"{engine.max_batch * engine.max_len:,} tokens ({quantity(engine.batch.cache.nbytes(), 'B')})"
    return f"{served.name}: context {engine.max_len:,}, batch {engine.max_batch}, caches of {size}"


def server_config(app: ASGIApp, *, grace_s: float) -> uvicorn.Config:
    """How the server runs: quietly, and with an end in order."""
    return uvicorn.Config(
        app,
        # httptools, which uvicorn prefers, takes headers of any size, and goes on with requests that a client had sent
        # ahead before it went away (experiments/LOG.md).
        http="h11",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        # A whole number of seconds, at least one: 0 would cut off requests that are about to end.
        timeout_graceful_shutdown=max(1, math.ceil(grace_s)),
    )


def run_server(app: ASGIApp, bound: socket.socket, worker: Worker, *, grace_s: float) -> int:
    """Serve until a signal; the exit code."""
    try:
        Server(server_config(app, grace_s=grace_s)).run(sockets=[bound])
    finally:
        worker.stop()
    if worker.cut_off:
        print_note(f"{worker.cut_off} request{'s' * (worker.cut_off != 1)} had to be cut off")
        return 1
    return 0
