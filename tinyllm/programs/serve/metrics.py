"""What the server counts, in the text format of Prometheus (version 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts of observations up to each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum!r}"
        yield f"{name}_count {total}"


class Metrics:
    """The counters. The decoding thread writes those of tokens, the event loop those of requests; each has one writer.

    Attributes:
        requests: responses by path and status.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = self.new_tokens = 0
        self.batch_size = Histogram(ROWS)
        self.first_token = Histogram(SECONDS)
        self.per_token = Histogram(SECONDS)

    def text(self, *, running: int, waiting: int) -> str:
        """All metrics.

        Args:
            running: samples in the batch.
            waiting: requests in the queue.
        """
        lines: list[str] = []

        def add(name: str, kind: str, help_text: str, values: Iterator[str] | list[str]) -> None:
            lines.extend((f"# HELP tinyllm_{name} {help_text}", f"# TYPE tinyllm_{name} {kind}", *values))

        # A copy in one operation of the interpreter: the event loop may add a key meanwhile.
        by_status = sorted(self.requests.copy().items())
        add(
            *("requests_total", "counter", "Responses by path and status; errors are those from 400."),
            [f'tinyllm_requests_total{{path="{path}",status="{status}"}} {n}' for (path, status), n in by_status],
        )
        for name, kind, help_text, value in (
            ("prompt_tokens_total", "counter", "Tokens of prompts that were read.", self.prompt_tokens),
            ("generated_tokens_total", "counter", "Tokens that were generated.", self.new_tokens),
            ("running", "gauge", "Samples in the batch.", running),
            ("waiting", "gauge", "Requests in the queue.", waiting),
        ):
            add(name, kind, help_text, [f"tinyllm_{name} {value}"])
        for name, help_text, histogram in (
            ("batch_size", "Samples decoded in a step.", self.batch_size),
            ("time_to_first_token_seconds", "From the request to its first token.", self.first_token),
            ("time_per_token_seconds", "Between two tokens of a sample.", self.per_token),
        ):
            add(name, "histogram", help_text, histogram.lines(f"tinyllm_{name}"))
        return "\n".join(lines) + "\n"
