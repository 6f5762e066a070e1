"""Throughput and latency of the HTTP server with one client and with many, over real sockets on this machine.

    python benchmarks/serve_load.py [--shape nano] [--clients 16] [--requests 32] [--prompt 64] [--new 48]

The server runs in a process of its own, with random weights of the shape given (vocabulary 50257 for gpt2, 257 for
nano), fp32 and the C++ kernels; the clients are threads of this process, which keep their connections, as OpenAI's
client does. Requests are greedy, without an end token, so each gets exactly ``--new`` tokens. Printed are tokens per
second of ``generate`` in the server's process, of requests one after the other, and of ``--clients`` clients at once,
each sending its next request when it has its answer; then the median and the 95th percentile of the time to the first
token of streams. Needs an otherwise idle machine.
"""

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

VOCABULARY = {"nano": 257, "gpt2": 50257}
NAME = "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="nano", choices=sorted(VOCABULARY))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32, help="requests of all clients together")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=48, help="new tokens per request")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port:
        serve(options)
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, __file__, *sys.argv[1:], "--port", str(port)]
    with subprocess.Popen(command) as server:
        try:
            measure(options, port)
        finally:
            server.terminate()


def measure(options: argparse.Namespace, port: int) -> None:
    """Wait for the server, then print the figures."""
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/ready")
            connection.getresponse().read()
            break
        except ConnectionRefusedError:
            time.sleep(0.2)
    connection.close()
    prompts = prompts_of(options, options.requests)
    few = max(2, options.requests // 8)
    timed_requests(port, prompts[:1], options.new, clients=1)
    alone = timed_requests(port, prompts[:few], options.new, clients=1)
    together = timed_requests(port, prompts, options.new, clients=options.clients)
    first_alone = first_tokens(port, prompts[:few], options.new, clients=1)
    first_together = first_tokens(port, prompts, options.new, clients=options.clients)
    print(f"{options.shape}, prompts of {options.prompt}, {options.new} new tokens, {options.clients} clients")
    print(f"one after the other {alone:8.0f} tokens/s")
    print(f"at once             {together:8.0f} tokens/s ({together / alone:.1f}×)")
    for name, seconds in (("one client", first_alone), ("all clients", first_together)):
        ordered = sorted(seconds)
        p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        print(f"first token, {name:11} median {ordered[len(ordered) // 2] * 1e3:6.1f} ms, p95 {p95 * 1e3:6.1f} ms")


def prompts_of(options: argparse.Namespace, count: int) -> list[list[int]]:
    numbers = random.Random(0)
    return [[numbers.randrange(256) for _ in range(options.prompt)] for _ in range(count)]


def body_of(prompt: list[int], new: int, *, stream: bool) -> bytes:
    return json.dumps({"model": NAME, "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": stream}).encode()


def ask(connection: http.client.HTTPConnection, prompt: list[int], new: int) -> int:
    """The number of tokens of an answer."""
    connection.request(
        "POST", "/v1/completions", body_of(prompt, new, stream=False), {"Content-Type": "application/json"}
    )
    answer = json.loads(connection.getresponse().read())
    return int(answer["usage"]["completion_tokens"])


def timed_requests(port: int, prompts: list[list[int]], new: int, *, clients: int) -> float:
    """Tokens per second."""
    own = threading.local()
    start = time.perf_counter()

    def connect() -> None:
        own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    with ThreadPoolExecutor(clients, initializer=connect) as pool:
        tokens = sum(pool.map(lambda prompt: ask(own.connection, prompt, new), prompts))
    return tokens / (time.perf_counter() - start)


def first_tokens(port: int, prompts: list[list[int]], new: int, *, clients: int) -> list[float]:
    """Seconds to the first token of each stream, once all clients are at work: they start one after the other."""
    found: list[float] = []
    started = threading.Semaphore(clients)

    def stream(prompt: list[int]) -> None:
        with started:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            begin = time.perf_counter()
            connection.request(
                "POST", "/v1/completions", body_of(prompt, new, stream=True), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            response.readline()
            found.append(time.perf_counter() - begin)
            response.read()
            connection.close()

    threads = []
    for prompt in prompts:
        threads.append(threading.Thread(target=stream, args=(prompt,)))
        threads[-1].start()
        if clients > 1:
            time.sleep(random.Random(len(threads)).uniform(0, 0.05))
        else:
            threads[-1].join()
    for thread in threads:
        thread.join()
    return found


def serve(options: argparse.Namespace) -> None:
    """The server's process: measure ``generate``, then listen."""
    from tinyllm.programs.serve.app import create_app
    from tinyllm.programs.serve.metrics import Metrics
    from tinyllm.programs.serve.program import in_own_thread, limit_threads, run_server
    from tinyllm.programs.serve.worker import Worker
    from tinyllm.utils.listening import listen

    served = in_own_thread(lambda: measured_model(options))
    limit_threads([served], served.engine.device)
    metrics = Metrics()
    worker = Worker([served.engine], metrics, max_waiting=1000)
    app = create_app([served], worker, metrics, api_key=None, max_body_bytes=10**6)
    run_server(app, listen("127.0.0.1", options.port), worker, grace_s=1)


def measured_model(options: argparse.Namespace) -> Any:
    """The model to serve, after printing the tokens per second of ``generate``."""
    import torch

    import tinyllm
    from tinyllm.data.prepare import cache_root
    from tinyllm.inference.batching import Engine
    from tinyllm.inference.generator import generate_batch
    from tinyllm.inference.sampling import Sampling
    from tinyllm.nn.decode_kernels import decode_kernels
    from tinyllm.programs.builders import build_model
    from tinyllm.programs.serve.served import ServedModel
    from tinyllm.tokenizers.ids import IdsTokenizer

    size = VOCABULARY[options.shape]
    cfg = tinyllm.compose(f"model={options.shape}", "tokenizer=byte")
    model: Any = build_model(cfg, vocab_size=size, seed=0, device=torch.device("cpu"), allow=frozenset()).eval()
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    model.for_inference(torch.float32, kernels=decode_kernels(cache_root() / "kernels"))
    tokenizer = IdsTokenizer(vocab_size=size)
    texts = [" ".join(map(str, prompt)) for prompt in prompts_of(options, 4)]
    greedy = Sampling(temperature=0)
    generate_batch(model, tokenizer, texts[:1], max_new_tokens=options.new, sampling=greedy)
    start = time.perf_counter()
    for text in texts:
        generate_batch(model, tokenizer, [text], max_new_tokens=options.new, sampling=greedy)
    print(f"generate            {len(texts) * options.new / (time.perf_counter() - start):8.0f} tokens/s", flush=True)
    engine = Engine(model, tokenizer, max_batch=options.clients, max_len=options.prompt + options.new)
    return ServedModel(name=NAME, engine=engine, weight_bytes=weight_bytes)


if __name__ == "__main__":
    main()
