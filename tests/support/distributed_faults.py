"""The faults of several ranks, for tests/reliability.py."""

from tests.support.fault_row import Row

LOST, TORCHRUN, NODES = (f"distributed/test_{name}.py" for name in ("lost_ranks", "torchrun", "two_nodes"))
LOSSES, ELASTIC, HEARTBEAT = (f"distributed/test_{name}.py" for name in ("same_losses", "elastic", "heartbeat"))

ROWS = (
    Row(
        number="R03",
        fault="the same batch on one, two or four ranks, with ddp or fsdp, with or without gradient accumulation",
        outcome="two ranks of ddp are the same as one that accumulates; other divisions, and fsdp, agree to rounding",
        tests=(
            f"{LOSSES}::test_two_ranks_are_bitwise_equal_to_one_process_that_accumulates",
            f"{LOSSES}::test_two_ranks_with_other_features",
            f"{LOSSES}::test_four_ranks_and_fsdp_agree_to_rounding",
            f"{LOSSES}::test_dropped_blocks_are_dropped_on_all_ranks",
            "distributed/test_messages.py::test_ddp_sends_each_gradient_once_per_step",
            "distributed/test_messages.py::test_fsdp_sends_each_block_in_one_message",
        ),
    ),
    Row(
        number="R08",
        fault="two ranks stopped and resumed twice, with dropout, under ddp and fsdp",
        outcome="the same, including the random state of each rank",
        tests=(f"{ELASTIC}::test_a_resume_on_the_same_ranks_is_bitwise_equal",),
    ),
    Row(
        number="R09",
        fault="resumed on different numbers of ranks: 2, 1, 4, 2",
        outcome="the total batch size is kept, and the losses agree to 1e-5; a number of ranks that does not divide it"
        " is refused",
        message="the batch does not divide over the ranks (WORLD_SIZE=3): it has 4 …",
        tests=(
            f"{ELASTIC}::test_two_to_one_to_four_and_back_to_two",
            f"{ELASTIC}::test_notes_on_dropout_and_on_a_given_batch_size",
            f"{ELASTIC}::test_a_batch_that_does_not_divide_over_the_ranks_is_refused",
        ),
    ),
    Row(
        number="R10",
        fault="a sharded checkpoint, read by unsharded ranks, by one process, and by `generate`, `evaluate` and"
        " `export`",
        outcome="read without conversion; tensors keep the model's names",
        tests=(
            f"{ELASTIC}::test_switching_between_fsdp_ddp_and_one_process",
            f"{ELASTIC}::test_a_sharded_checkpoint_is_read_by_programs_of_one_process",
        ),
    ),
    Row(
        number="R17",
        fault="kill -9 of a rank, or of rank 0 while it saves; a lost host",
        outcome="the other ranks end at once and name it; after a resume, the same",
        message="a rank was lost …: no heartbeat from …last seen at …the last checkpoint is intact, resume from it",
        tests=(f"{LOST}::test_a_rank_is_killed", f"{NODES}::test_a_host_is_lost_and_the_run_started_again"),
    ),
    Row(
        number="R18",
        fault="kill -9 of a rank under torchrun --max-restarts",
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
        fault="(a) SIGUSR1 to torchrun --signals-to-handle=…,SIGUSR1; (b) torchrun is killed",
        outcome="(a) as with SIGTERM (R20); (b) the ranks notice, save and end; no process is left",
        tests=(
            f"{TORCHRUN}::test_a_signal_to_torchrun_stops_all_ranks_after_the_step",
            f"{TORCHRUN}::test_ranks_stop_with_a_checkpoint_when_torchrun_is_killed",
        ),
    ),
    Row(
        number="R22",
        fault="a signal to one rank alone",
        outcome="all ranks stop after the same step; after a resume, the same",
        tests=(f"{LOST}::test_a_signal_to_one_rank_stops_all",),
    ),
    Row(
        number="R23",
        fault="a rank is suspended (SIGSTOP), hangs, or is cut off",
        outcome="the other ranks end after `distributed.timeout_s` and say which rank it is and at which step",
        message="rank 1 is alive but does not answer, at step …",
        tests=(
            f"{LOST}::test_a_rank_is_stopped",
            f"{LOST}::test_a_rank_hangs",
            f"{NODES}::test_the_cable_is_cut",
            f"{HEARTBEAT}::test_a_rank_that_hangs_while_its_heartbeat_goes_on_is_named",
        ),
    ),
    Row(
        number="R24",
        fault="(a) a rank raises an error or runs out of memory; (b) ranks with different settings or data; (c) a user"
        " error on all ranks",
        outcome="(a) that rank's error comes first, with rank and step; (b) refused before training; (c) reported once",
        message="error: RuntimeError: … (rank 1, step 5)",
        tests=(
            f"{LOST}::test_a_rank_fails",
            f"{LOST}::test_ranks_with_different_settings_are_refused",
            f"{LOST}::test_ranks_with_different_data_are_refused",
            f"{TORCHRUN}::test_a_rank_fails",
            f"{TORCHRUN}::test_a_user_error_is_shown_once",
        ),
    ),
    Row(
        number="R27",
        fault="ranks exit at the end",
        outcome="exit code 0, no abort",
        tests=(f"{TORCHRUN}::test_ranks_disconnect_in_order",),
    ),
)
