"""The table that a sweep prints at its end."""

from collections.abc import Iterable, Sequence

from tinyllm.studies.sweep.job_record import FAILED, FINISHED, INTERRUPTED, NOT_STARTED, SKIPPED, JobRecord
from tinyllm.utils.tables import Column, Table

STYLES = {FINISHED: "green", SKIPPED: "dim green", FAILED: "red", INTERRUPTED: "yellow", NOT_STARTED: "dim"}


def sweep_table(records: Sequence[JobRecord], skipped: Iterable[str], *, best: JobRecord | None) -> Table:
    """A row per job.

    Args:
        skipped: names of the jobs that had finished before this sweep started.
        best: the job to emphasise.
    """
    metrics = list(dict.fromkeys(record.metric_label for record in records))
    columns = [
        *(Column(name="job"), Column(name="overrides"), Column(name="status", styles=STYLES)),
        *(Column(name=name, right=True) for name in (" or ".join(metrics), "bpb", "tokens/s")),
    ]
    rows = [
        (
            str(record.number),
            record.label,
            record.shown_status(skipped),
            "" if record.val_loss is None else f"{record.val_loss:.4f}",
            "" if record.val_bpb is None else f"{record.val_bpb:.4f}",
            "" if record.tokens_per_s is None else f"{record.tokens_per_s:,.0f}",
        )
        for record in records
    ]
    return Table(columns=columns, rows=rows, bold=[index for index, record in enumerate(records) if record is best])
