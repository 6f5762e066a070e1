"""Processes that encode text: the work per word is Python's, which one process does on one core.

A process ends when its input does, so none outlives the program, even if that is killed. Workers of ``multiprocessing``
would wait forever after a SIGKILL, and would import the main module again.
"""

import json
import os
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Self

import numpy as np

from tinyllm.data.text_batch import EncodedBatch, EncodingStats, TextBatch, encode_batch
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.huggingface import DocumentPiece
from tinyllm.tokenizers.pretrained import loads
from tinyllm.utils.files import parse_json
from tinyllm.utils.platforms import ignore
from tinyllm.utils.stop_signal import HANDLED

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class LostProcessError(UserError):
    """A process that encodes text was killed; the same call can succeed."""


class EncodingPool:
    """Encodes batches in several processes; a context manager.

    Args:
        tokenizer: encodes the text.
        processes: number of processes. The result does not depend on it.
    """

    def __init__(self, tokenizer: Tokenizer, processes: int) -> None:
        # As in this process, so that the child finds the same package.
        code = f"import sys; sys.path[:] = {sys.path!r}; from tinyllm.data.encoding_pool import serve; serve()"
        command, environment = [sys.executable, "-c", code], os.environ | ONE_THREAD
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(processes)  # each waits for the answer of one process
        self._state = tokenizer.to_json()
        for _ in range(processes):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._processes.append(process)
            self._idle.put(process)
        self._greeted: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def encode(self, batches: Iterable[TextBatch]) -> Iterator[EncodedBatch]:
        """The ids of ``batches``, in order; reads a few batches ahead.

        Raises:
            LostProcessError: a process was killed.
            UserError: a text cannot be encoded.
        """
        waiting: deque[Future[EncodedBatch]] = deque()
        for batch in batches:
            waiting.append(self._threads.submit(self._ask, batch))
            if len(waiting) > len(self._processes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _ask(self, batch: TextBatch) -> EncodedBatch:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.pid not in self._greeted:
                self._greeted.add(process.pid)
                _send(self._state.encode(), process.stdin)
            _send(_batch_frame(batch), process.stdin)
            return _receive_ids(process.stdout)
        except (OSError, EOFError) as error:
            hint = "it may have run out of memory; run the command again"
            raise LostProcessError("a process that encodes the text was killed", key="dataset", hint=hint) from error
        finally:
            self._idle.put(process)  # after an error too: the next batch gets the same error instead of waiting forever


def _send(frame: bytes, stream: IO[bytes]) -> None:
    stream.write(len(frame).to_bytes(8, "little") + frame)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """The next frame. Raises EOFError if the process at the other end has ended."""
    size = stream.read(8)
    frame = stream.read(int.from_bytes(size, "little"))
    if len(size) < 8 or len(frame) < int.from_bytes(size, "little"):
        raise EOFError
    return frame


def _batch_frame(batch: TextBatch) -> bytes:
    before = [getattr(text, "before", None) for text in batch.texts]
    return json.dumps([batch.texts, before, batch.slots], ensure_ascii=False).encode()


def _batch_of(frame: bytes) -> TextBatch:
    texts, before, slots = parse_json(frame, most=sys.maxsize)  # brackets in the text count too
    pairs = zip(texts, before, strict=True)
    return TextBatch([text if b is None else DocumentPiece(text, b) for text, b in pairs], slots)


def _send_ids(encoded: EncodedBatch, stream: IO[bytes]) -> None:
    ids, lengths, pending, stats = encoded
    facts = {"dtype": ids.dtype.str, "pending": pending, "stats": astuple(stats), "has_lengths": lengths is not None}
    _send(json.dumps(facts).encode(), stream)
    _send(ids.tobytes(), stream)
    if lengths is not None:
        _send(lengths.astype(np.int64).tobytes(), stream)


def _receive_ids(stream: IO[bytes]) -> EncodedBatch:
    """The answer to a batch.

    Raises:
        EOFError: the process has ended.
        UserError, RuntimeError: the batch cannot be encoded.
    """
    facts = parse_json(_receive(stream))
    if "user_error" in facts:
        raise UserError(facts["user_error"])
    if "error" in facts:
        raise RuntimeError(facts["error"])
    ids = np.frombuffer(_receive(stream), dtype=facts["dtype"])
    # A copy, because the caller adds the bytes that are pending from earlier batches.
    lengths = np.frombuffer(_receive(stream), dtype=np.int64).copy() if facts["has_lengths"] else None
    return EncodedBatch(ids, lengths, facts["pending"], EncodingStats(*facts["stats"]))


def serve() -> None:
    """Body of a process of the pool: encode the batches on standard input until it ends."""
    ignore(HANDLED)  # Ctrl-C reaches the whole process group; the parent decides
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    try:
        tokenizer = loads(_receive(source).decode())
        while True:
            batch = _batch_of(_receive(source))
            try:
                encoded = encode_batch(tokenizer, batch)
            except UserError as error:
                _send(json.dumps({"user_error": str(error)}).encode(), answers)
            except Exception:
                _send(json.dumps({"error": traceback.format_exc()}).encode(), answers)
            else:
                _send_ids(encoded, answers)
    except (EOFError, OSError):  # the parent has ended
        os._exit(0)
