"""What a store reports about finished and unfinished experts."""

from __future__ import annotations

from pathlib import Path

from fusion.store import Store
from fusion.versions.experts import (
    ExpertRecord,
    UnfinishedExpert,
    count_attempt,
    put_expert,
    put_expert_file,
    put_training_state,
    survey_experts,
)


def test_unfinished_experts_are_told_from_finished_ones_with_their_steps_and_attempts(
    any_store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "state.safetensors"
    file.write_bytes(b"state")
    assert survey_experts(any_store) == (0, [])
    count_attempt(any_store, "begun")
    for _ in range(2):
        count_attempt(any_store, "interrupted")
    put_training_state(any_store, "interrupted", file, step=200)
    put_training_state(any_store, "interrupted", file, step=400)
    count_attempt(any_store, "done")  # left by a killed worker next to the record that it had just written
    weights = put_expert_file(any_store, "done", file)
    put_expert(any_store, ExpertRecord("done", "pets", (), (), "base", weights))
    assert survey_experts(any_store) == (
        1,
        [UnfinishedExpert("begun", 0, 1), UnfinishedExpert("interrupted", 400, 2)],
    )
