"""The stream of training batches of a run."""

from collections.abc import Iterator
from functools import partial

from tinyllm.data.batch import Batch
from tinyllm.data.loader import train_batches
from tinyllm.data.shards import ShardedSampler
from tinyllm.programs.builders import plain
from tinyllm.programs.run_plan import RunPlan
from tinyllm.training.state import TrainState


def remaining_batches(plan: RunPlan, state: TrainState) -> Iterator[Batch]:
    """This rank's micro-batches from the state's step to the horizon."""
    batch = plan.batch
    batches = partial(
        train_batches,
        plan.sampler,
        batch_size=batch.batch_size,
        grad_accum_steps=batch.grad_accum_steps,
        rank=plan.strategy.rank,
        world_size=batch.world_size,
        shift=state.sequences - state.step * batch.sequences,
        length_at=plan.lengths.at,
        pin_memory=plan.pin_memory,
    )
    step = state.step
    if isinstance(plan.sampler, ShardedSampler):  # the workers' copies of the data would not grow with them
        while step < plan.max_steps and not plan.sampler.has_all_data:
            yield from batches(start_step=step, end_step=step + 1)
            step += 1
    workers = plain(plan.cfg.dataloader) | {"pin_memory": plan.pin_memory}
    yield from batches(start_step=step, end_step=plan.max_steps, **workers)
