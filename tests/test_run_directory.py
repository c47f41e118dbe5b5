"""The run directory: what is refused, kept and cleared."""

import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune.errors import CheckpointError, OutputError, UsageError
from onnxprune.run_directory import RunDirectory

FACTS: dict[str, Any] = {"run_id": "a", "source_sha256": "s", "recipe_sha256": "r"}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "deep" / "run")


def started(run: RunDirectory, *, resume: bool = False, **facts: str) -> RunDirectory:
    run.check(resume=resume)
    run.start({**FACTS, **facts}, "[sparsity]\n", resume=resume)
    return run


def entries(run: RunDirectory) -> list[Any]:
    return [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]


def test_a_fresh_run_writes_status_identity_and_recipe(run: RunDirectory) -> None:
    started(run)
    assert run.facts() == {**FACTS, "schema_version": 1, "status": "running"}
    assert run.recipe.read_text(encoding="utf-8") == "[sparsity]\n"
    assert {file.name for file in run.path.iterdir()} == {"run.json", "recipe.toml"}


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_or_missing_folder_is_welcome(run: RunDirectory, resume: bool) -> None:
    run.check(resume=resume)
    run.path.mkdir(parents=True)
    run.check(resume=resume)
    assert started(run, resume=resume).facts()["status"] == "running"


@pytest.mark.parametrize("name", ["photo.jpg", "run.json"])
def test_a_folder_of_something_else_is_left_alone(run: RunDirectory, name: str) -> None:
    run.path.mkdir(parents=True)
    (run.path / name).write_text('{"another": "tool"}', encoding="utf-8")
    for resume in (False, True):
        with pytest.raises(UsageError, match="not a run"):
            run.check(resume=resume)


def test_a_lock_that_cannot_be_written_is_an_error(run: RunDirectory) -> None:
    run.lock.mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written"), run.locked():
        pass


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="is a file"):
        RunDirectory(tmp_path / "file").check(resume=False)
    with pytest.raises(OutputError, match="cannot be made"):
        RunDirectory(tmp_path / "file" / "run").start(FACTS, "", resume=False)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_an_unfinished_run_needs_resume(run: RunDirectory, status: Any) -> None:
    started(run).set_status(status)
    run.check(resume=False)
    run.checkpoints.mkdir()
    with pytest.raises(UsageError, match="unfinished run"):
        run.check(resume=False)
    run.check(resume=True)


def test_a_finished_run_is_replaced_without_a_trace(run: RunDirectory) -> None:
    started(run).set_status("finished", {"extra": 1})
    run.checkpoints.mkdir()
    for file in (run.plan, run.log, run.results, run.report, run.teacher):
        file.write_bytes(b"old")
    (run.path / "notes.txt").write_bytes(b"mine")
    started(run, run_id="b")
    assert {file.name for file in run.path.iterdir()} == {"run.json", "recipe.toml", "notes.txt"}
    assert "extra" not in run.facts()


def test_resuming_keeps_everything_and_forgets_an_old_error(run: RunDirectory) -> None:
    started(run).set_status("failed", {"error": "diverged"})
    run.checkpoints.mkdir()
    run.append({"kind": "train", "step": 1})
    started(run, resume=True)
    assert run.facts() == {**FACTS, "schema_version": 1, "status": "running"}
    assert run.checkpoints.is_dir()
    assert len(entries(run)) == 1


def test_another_run_is_not_resumed_and_the_difference_is_named(run: RunDirectory) -> None:
    started(run)
    with pytest.raises(CheckpointError, match="different recipe_sha256") as caught:
        started(run, resume=True, run_id="b", recipe_sha256="other")
    assert "source_sha256" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000, "\xff"])
def test_a_damaged_run_file_does_not_lose_the_run(run: RunDirectory, content: str) -> None:
    """Whatever a kill leaves of `run.json`, the checkpoints say themselves whose they are."""
    started(run)
    run.checkpoints.mkdir()
    run.append({"kind": "train", "step": 1})
    run.run.write_text(content, encoding="latin-1")
    assert run.facts() == {}
    with pytest.raises(UsageError, match="unfinished run"):
        run.check(resume=False)
    run.check(resume=True)
    started(run, resume=True)
    assert run.facts()["run_id"] == FACTS["run_id"]
    assert run.checkpoints.is_dir()
    assert len(entries(run)) == 1


def test_what_a_kill_at_the_very_beginning_leaves_is_no_obstacle(run: RunDirectory) -> None:
    run.path.mkdir(parents=True)
    leftover = run.path / ".run.json.0123abcd.tmp"
    leftover.write_text("{")
    run.log.write_text("")
    run.check(resume=True)
    run.check(resume=False)
    started(run, resume=True)
    assert not leftover.exists()
    (run.path / "holiday.jpg").write_bytes(b"")
    run.run.unlink()
    with pytest.raises(UsageError, match="holiday"):
        run.check(resume=True)


def test_one_process_at_a_time(run: RunDirectory) -> None:
    other = RunDirectory(run.path)
    with run.locked(), pytest.raises(UsageError, match="another process"), other.locked():
        pass
    with other.locked():
        assert run.path.is_dir()


def test_the_log_is_rewound_to_a_checkpoint(run: RunDirectory) -> None:
    started(run)
    written = [
        {"kind": "event", "step": 0, "sparsity": 0.2},
        {"kind": "train", "step": 1},
        {"kind": "event", "step": 2, "sparsity": 0.4},
        {"kind": "train", "step": 2},
        {"kind": "eval", "step": 2},
        {"kind": "event", "step": 2, "sparsity": 0.6},
        {"kind": "wait", "step": 2, "sparsity": 0.6},
        {"kind": "train", "step": 3},
    ]
    for entry in written:
        run.append(entry)
    run.rewind_log(2, 0.4, 0)
    assert entries(run) == written[:5]
    run.rewind_log(1, 0.2, 0)
    assert entries(run) == written[:2]


def test_an_event_that_waited_is_logged_once(run: RunDirectory) -> None:
    """It comes before its own step, so a run that goes on from there meets it again."""
    started(run)
    waits = [{"kind": "wait", "step": step} for step in (1, 2, 3)]
    for entry in waits:
        run.append(entry)
    run.rewind_log(2, 0.0, 0)
    assert entries(run) == waits[:1]


def test_rollbacks_stay_in_the_log_as_far_as_the_checkpoint_knows_them(run: RunDirectory) -> None:
    started(run)
    written = [
        {"kind": "train", "step": 1},
        {"kind": "rollback", "step": 1, "failed_at": 4},
        {"kind": "train", "step": 2},
        {"kind": "rollback", "step": 1, "failed_at": 3},
    ]
    for entry in written:
        run.append(entry)
    run.rewind_log(1, 0.0, 1)
    assert entries(run) == written[:2]
    run.rewind_log(1, 0.0, 0)
    assert entries(run) == written[:1]


def test_half_written_and_foreign_lines_of_the_log_are_dropped(run: RunDirectory) -> None:
    started(run)
    run.append({"kind": "train", "step": 1})
    with run.log.open("a", encoding="utf-8") as stream:
        stream.write('{"kind": "tra\n[]\n3\n{"kind": "train"}\n{"kind": "train", "step": "one"}\n')
    run.rewind_log(5, 1.0, 0)
    assert entries(run) == [{"kind": "train", "step": 1}]
    run.log.unlink()
    run.rewind_log(5, 1.0, 0)
    assert not run.log.exists()


def test_json_files_are_text_of_this_world(run: RunDirectory) -> None:
    started(run).write_json(run.plan, {"name": "größe"})
    assert run.plan.read_text(encoding="utf-8") == '{\n "name": "größe"\n}\n'
