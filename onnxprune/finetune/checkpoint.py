"""Checkpoints: safetensors with a checksum, written beside and renamed, the last two kept."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onnxprune.errors import CheckpointError, OutputError

KEEP = 2
_TENSORS = "state.safetensors"
_FACTS = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimizer steps.

    Attributes:
        step: Number of steps done.
        tensors: Parameters, buffers, masks, optimizer and random state by name.
        facts: JSON values.
        revision: How often the run went back before it was written. Of the checkpoints of a step,
            that with the highest one holds.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    revision: int = 0


class CheckpointStore:
    """The checkpoints of a run in one folder.

    Args:
        folder: Holds one sub-folder a checkpoint; made when needed.
        run_id: Identifies model, data and recipe. A checkpoint of another run is refused.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        self.run_id = run_id
        self._sound: Path | None = None
        self._damaged: list[Path] = []

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and delete all but those of the last two steps.

        Nothing is written if the newest one is of this step and revision and sound: a run that
        continues from either goes the same way, and so no moment is without a sound checkpoint.

        Raises:
            OutputError: It cannot be written; older checkpoints stay.
        """
        target = self.folder / _name(checkpoint.step, checkpoint.revision)
        if target != self._sound:
            self._write(checkpoint, target)
        # Also if nothing was written: a process may have died before it came to this.
        replaced = [old for old in self._of_step(checkpoint.step) if old < target]
        others = [old for old in self._folders() if old not in replaced]
        for old in [*self._damaged, *replaced, *others[:-KEEP]]:
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
        self._damaged.clear()
        self._clear_partial()

    def _write(self, checkpoint: Checkpoint, target: Path) -> None:
        """Write a checkpoint under another name, and rename it when it is whole."""
        partial = self.folder / f".{target.name}.tmp"
        try:
            self._clear_partial()
            partial.mkdir(parents=True)
            _sync(self.folder.parent)
            save_file(_separate(checkpoint.tensors), partial / _TENSORS)
            facts = {"run_id": self.run_id, "step": checkpoint.step, "facts": checkpoint.facts}
            facts["revision"] = checkpoint.revision
            facts["sha256"] = _digest(facts, partial / _TENSORS)
            (partial / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
            for file in (_TENSORS, _FACTS):
                _sync(partial / file)
            _sync(partial)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            self._clear_partial()
            raise OutputError(
                "a checkpoint cannot be written",
                where=target,
                got=error,
                remedy="free some space, then continue with --resume",
            ) from None
        self._sound = target

    def _clear_partial(self) -> None:
        """Remove what a process left that died while it wrote."""
        for partial in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(partial, ignore_errors=True)

    def discard(self, *steps: int) -> None:
        """Forget the checkpoints of some steps, each unless there are no others."""
        for step in steps:
            own = self._of_step(step)
            if len(own) < len(self._folders()):
                for folder in own:
                    shutil.rmtree(folder, ignore_errors=True)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a line for each newer one that is not.

        Raises:
            CheckpointError: The checkpoints belong to another run, or all of them are damaged.
        """
        damaged: list[str] = []
        self._damaged.clear()
        for folder in reversed(self._folders()):
            try:
                checkpoint = self._read(folder)
                self._sound = folder
                return checkpoint, damaged
            except (
                OSError,
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                SafetensorError,
            ) as error:
                self._damaged.append(folder)
                damaged.append(f"checkpoint {folder.name} is damaged and skipped ({error})")
        if damaged:
            raise CheckpointError(
                "none of the checkpoints can be read",
                where=self.folder,
                got="; ".join(damaged),
                remedy="start again in an empty run directory",
            )
        return None, []

    def _read(self, folder: Path) -> Checkpoint:
        stored = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        digest = stored.pop("sha256")
        sound = digest == _digest(stored, folder / _TENSORS)
        if not sound or folder.name != _name(stored["step"], stored["revision"]):
            raise ValueError("the checksum differs")
        if stored["run_id"] != self.run_id:
            raise CheckpointError(
                "the run directory belongs to a run with another model, recipe or data",
                where=folder.parent.parent,
                remedy="name another --run-dir, or restore what the run was started with",
            )
        tensors = load_file(folder / _TENSORS)
        return Checkpoint(int(stored["step"]), tensors, stored["facts"], int(stored["revision"]))

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def _of_step(self, step: int) -> list[Path]:
        first = _name(step)
        return [f for f in self._folders() if f.name == first or f.name.startswith(f"{first}-")]


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, copied where they share memory, which safetensors refuses."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate


def _name(step: int, revision: int = 0) -> str:
    """Of a folder; in the order of names, the newest is the last."""
    return f"step-{step:08d}" + (f"-{revision:08d}" if revision else "")


def _digest(facts: dict[str, Any], tensors: Path) -> str:
    """Checksum of all that a checkpoint says, and of its tensors."""
    with tensors.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file to the disk; a folder where the platform can."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if os.name != "nt":
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
