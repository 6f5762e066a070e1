"""A limit on how long a call may take, whatever it waits for."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of ``call``. If it takes longer it is left behind in a thread that ends with the program.

    Limits of network libraries hold per connection, and the look-up of a name can take minutes in spite of them.

    Raises:
        TimeoutError: it took longer; or whatever ``call`` raises.
    """
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="call with a deadline")
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not answer:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answer[0]
