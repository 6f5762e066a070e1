"""The faults of several ranks, for tests/reliability.py."""

from tests.support.fault_row import Row

LOST, TORCHRUN, NODES = (f"distributed/test_{name}.py" for name in ("lost_ranks", "torchrun", "two_nodes"))
LOSSES, ELASTIC, HEARTBEAT = (f"distributed/test_{name}.py" for name in ("same_losses", "elastic", "heartbeat"))

ROWS = (
    Row(
        number="R03",
        fault="the same batch on one, two or four ranks, with ddp or fsdp, with or without gradient accumulation",
        outcome="two ranks are the same as one rank that accumulates; other divisions agree to rounding",
        tests=(
            f"{LOSSES}::test_two_ranks_give_the_bits_of_one_that_accumulates",
            f"{LOSSES}::test_two_ranks_with_other_features",
            f"{LOSSES}::test_four_ranks_and_parts_to_rounding",
            f"{LOSSES}::test_dropped_blocks_are_dropped_on_all_ranks",
            "distributed/test_messages.py::test_whole",
            "distributed/test_messages.py::test_in_parts",
        ),
    ),
    Row(
        number="R08",
        fault="two ranks stopped and resumed twice, with dropout, under ddp and fsdp",
        outcome="the same, including the random state of each rank",
        tests=(f"{ELASTIC}::test_the_same_ranks_go_on_with_every_bit",),
    ),
    Row(
        number="R09",
        fault="resumed on other numbers of ranks: 2, 1, 4, 2",
        outcome="the batch stays, the losses agree to 1e-5; a number of ranks that does not divide it is refused",
        message="the batch does not divide over the ranks (WORLD_SIZE=3): it has 4 …",
        tests=(
            f"{ELASTIC}::test_two_to_one_to_four_and_back_to_two",
            f"{ELASTIC}::test_what_is_said_about_dropout_and_a_batch_that_is_named",
            f"{ELASTIC}::test_a_batch_that_cannot_be_dealt_out",
        ),
    ),
    Row(
        number="R10",
        fault="a sharded checkpoint, read by unsharded ranks, by one process, and by other programs",
        outcome="read as it is; tensors have the names of the model",
        tests=(
            f"{ELASTIC}::test_in_parts_from_two_to_four_to_whole_to_one",
            f"{ELASTIC}::test_programs_of_one_process_read_what_two_wrote",
        ),
    ),
    Row(
        number="R17",
        fault="kill −9 of a rank, also of rank 0 while it saves; a lost host",
        outcome="the other ranks end at once and name it; after a resume, the same",
        message="a rank was lost …: no heartbeat from …last seen at …the last checkpoint is intact, resume from it",
        tests=(f"{LOST}::test_a_rank_is_killed", f"{NODES}::test_a_host_is_lost_and_the_run_started_again"),
    ),
    Row(
        number="R18",
        fault="kill −9 of a rank under torchrun --max-restarts",
        outcome="torchrun restarts the ranks, which resume from the last checkpoint: the same, exit code 0",
        tests=(f"{TORCHRUN}::test_a_rank_is_killed_and_torchrun_starts_all_again",),
    ),
    Row(
        number="R20",
        fault="SIGTERM to torchrun",
        outcome="all ranks finish the step and end with one checkpoint; after a resume, the same",
        tests=(f"{TORCHRUN}::test_a_signal_to_torchrun_stops_all_ranks_after_the_step",),
    ),
    Row(
        number="R21",
        fault="SIGUSR1 to torchrun --signals-to-handle=…,SIGUSR1; torchrun is killed",
        outcome="as with SIGTERM; ranks without a launcher save and end, and no process is left",
        tests=(
            f"{TORCHRUN}::test_a_signal_to_torchrun_stops_all_ranks_after_the_step",
            f"{TORCHRUN}::test_torchrun_itself_is_killed",
        ),
    ),
    Row(
        number="R22",
        fault="a signal to one rank alone",
        outcome="all ranks stop after the same step; after a resume, the same",
        tests=(f"{LOST}::test_one_rank_alone_is_asked_to_stop",),
    ),
    Row(
        number="R23",
        fault="a rank is stopped, hangs, or is cut off",
        outcome="the other ranks end after `distributed.timeout_s` and say which rank it is and at which step",
        message="rank 1 is alive but does not answer, at step …",
        tests=(
            f"{LOST}::test_a_rank_is_stopped",
            f"{LOST}::test_a_rank_hangs",
            f"{NODES}::test_the_cable_is_cut",
            f"{HEARTBEAT}::test_one_hangs_while_its_thread_goes_on",
        ),
    ),
    Row(
        number="R24",
        fault="a rank raises an error or runs out of memory; ranks with different settings or data; a user error",
        outcome="the error of that rank comes first, with rank and step; a user error is reported once",
        message="error: RuntimeError: … (rank 1, step 5)",
        tests=(
            f"{LOST}::test_a_rank_fails",
            f"{LOST}::test_ranks_that_were_started_differently",
            f"{LOST}::test_ranks_that_find_other_data",
            f"{TORCHRUN}::test_a_rank_fails",
            f"{TORCHRUN}::test_a_mistake_is_told_once",
        ),
    ),
    Row(
        number="R27",
        fault="ranks exit at the end",
        outcome="exit code 0, no abort",
        tests=(f"{TORCHRUN}::test_ranks_leave_in_order",),
    ),
)
