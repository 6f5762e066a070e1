"""Processes that encode text: the work per word is Python's, which one process does on one core.

A process ends when its input does, so none outlives the program, even if that is killed. Workers of ``multiprocessing``
would wait forever after a SIGKILL, and would import the main module again.
"""

import os
import pickle
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Self

from tinyllm.data.text_batch import EncodedBatch, TextBatch, encode_batch
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.pretrained import loads
from tinyllm.utils.platforms import ignore
from tinyllm.utils.stop_signal import HANDLED

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


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
            UserError: a process was killed, or a text cannot be encoded.
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
                _send(self._state, process.stdin)
            _send(batch, process.stdin)
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
            hint = "it may have run out of memory; run the command again"
            raise UserError("a process that encodes the text was killed", key="dataset", hint=hint) from error
        finally:
            self._idle.put(process)  # after an error too: the next batch gets the same error instead of waiting forever
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, EncodedBatch)
        return answer


def _send(message: object, stream: IO[bytes]) -> None:
    pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def serve() -> None:
    """Body of a process of the pool: encode the batches on standard input until it ends."""
    ignore(HANDLED)  # Ctrl-C reaches the whole process group; the parent decides
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    try:
        tokenizer = loads(pickle.load(source))
        while True:
            batch = pickle.load(source)
            answer: object
            try:
                answer = encode_batch(tokenizer, batch)
            except UserError as error:
                answer = error
            except Exception:
                answer = RuntimeError(traceback.format_exc())
            _send(answer, answers)
    except (EOFError, OSError):  # the parent has ended
        os._exit(0)
