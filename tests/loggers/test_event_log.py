"""events.jsonl holds what a run reported, survives damage, and forgets samples of steps that were trained again."""

import json
from pathlib import Path

from tests.support import fake_run
from tinyllm.loggers.event_log import EventLog
from tinyllm.runs.events import newest_events
from tinyllm.runs.layout import EVENTS
from tinyllm.training.callbacks import CallbackList


def test_every_event_is_recorded_in_order(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    fake_run.tell(EventLog(path), tmp_path)
    events = newest_events(path, most=100)[::-1]
    kinds = [event.kind for event in events]
    assert kinds == ["start", *["evaluation", "sample", "checkpoint"] * 4, "note", "end"]
    assert [event.step for event in events] == [0, *(step for step in (100, 200, 300, 400) for _ in range(3)), 400, 400]
    texts = {event.kind: event.text for event in events}
    assert "804,480" in texts["start"] and texts["sample"] == fake_run.SAMPLE and texts["end"] == "finished"
    assert texts["checkpoint"] == "step-000400 (periodic)" and texts["note"].startswith("a step was skipped")
    assert [event.text.endswith(", best so far") for event in events if event.kind == "evaluation"] == [1, 1, 0, 1]
    assert [event.step for event in newest_events(path, most=2, kind="sample")] == [400, 300]


def test_samples_of_steps_trained_again_are_left_out(tmp_path: Path) -> None:
    path, log = tmp_path / EVENTS, EventLog(tmp_path / EVENTS)
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3,)), (1, ())):
        log.on_start(fake_run.info(tmp_path, start_step=start))
        for step in steps:
            log.on_sample(step, f"{start}-{step}")
    assert [event.text for event in newest_events(path, most=9, kind="sample")] == ["0-1"]
    assert len(newest_events(path, most=99)) == 8


def test_damaged_lines_are_skipped_and_a_link_is_not_followed(tmp_path: Path) -> None:
    path, outside = tmp_path / EVENTS, tmp_path / "outside"
    good = json.dumps({"event": "note", "time": 1.5, "step": 1, "text": "</script>{{ 1 }}"}).encode()
    path.write_bytes(
        b"\n".join([good, b"[1]", b'{"event": "note"}', b"\0" * 9, good[:-1], b'{"event": 1}', good, b'{"e'])
    )
    assert [event.text for event in newest_events(path, most=9)] == ["</script>{{ 1 }}"] * 2
    path.rename(outside)
    path.symlink_to(outside)
    assert newest_events(path, most=9) == [] == newest_events(tmp_path / "none", most=9)
    messages: list[str] = []
    log = EventLog(path)
    events = CallbackList([log])
    events.on_message = messages.append  # type: ignore[method-assign]
    events.on_sample(3, "x")
    assert len(messages) == 1 and "OSError" in messages[0] and outside.read_bytes().endswith(b'{"e')
