"""The folder of a run: held against other runs, its metrics, and what an earlier run left in it."""

import errno
import json
import os
import platform
import shutil
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.output.checkpoints import called_checkpoints, newest_whole, number
from lora_kit.output.lora_file import LORA, make_repository, rescue, upload_problem
from lora_kit.output.metrics import METRICS, read_metrics
from lora_kit.output.room import check_room
from lora_kit.steps import Steps
from lora_kit.system.devices import device_name
from lora_kit.system.files import NotWritten, disk_failed, finite, reason, write_whole

LOCK = "run.lock"
VALIDATION = "validation"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what disks without file locks answer


def place_problem(config: TrainingConfig) -> str | None:
    """Why output_dir is no good place: inside the folder of the pictures, what a run draws would be trained on by the next."""
    try:
        output = Path(config.output_dir).resolve()
    except (OSError, ValueError):  # a name that this disk doesn't take, which is said by who makes it
        return None
    for field in ("train_data_dir", "dataset_name"):
        value = getattr(config, field)
        if value is None or (field == "dataset_name" and not Path(value).is_dir()):
            continue
        pictures = Path(value).resolve()
        if output == pictures or pictures in output.parents:
            return (
                f"output_dir {config.output_dir!r} lies inside {field} {value!r}: a validation picture would be used for training; "
                "choose a folder outside it"
            )
    return None


def check_output(config: TrainingConfig, main: bool) -> None:
    """ValueError, before any heavy work, where the results can't go where they are to go. main: asks the Hub as well."""
    for problem in (place_problem(config), upload_problem(config)):
        if problem:
            raise ValueError(problem)
    if main and config.push_to_hub:
        make_repository(config)


class OutputFolder:
    """A run's folder. Inside `with`, where `main` (the first process) holds it, no other run can write into it.

    A folder that was made for a run that never began (`begin`) goes as the block ends. Raises ValueError where it can't be
    written or another run holds it. Once `save_lora` is set, to what writes the LoRA into a folder, a block that a full disk
    ends keeps it and says where, with what else is safe.
    """

    def __init__(self, output_dir: str, logging_dir: str = "logs", main: bool = True):
        self.path, self.main = Path(output_dir), main
        self.logging_dir = self.path / logging_dir
        self.lock = self.metrics = self.save_lora = None
        self.to_remove, self.updates = False, 0

    def __enter__(self) -> "OutputFolder":
        if self.main:
            self.to_remove = not self.path.exists()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock = hold(self.path / LOCK)
                if self.lock:  # what a run that was killed hadn't finished
                    for part in self.path.glob("checkpoint-*.part"):
                        shutil.rmtree(part, ignore_errors=True)
            except OSError as error:
                self.leave()
                raise ValueError(f"output_dir {str(self.path)!r} can't be written: {reason(error)}") from None
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if self.main and self.save_lora and disk_failed(error):
                raise NotWritten(f"{error}; {self.what_is_safe()}") from error
        finally:
            self.leave()

    def what_is_safe(self) -> str:
        """Where the LoRA as it stands could be kept, and the newest whole checkpoint, as a sentence."""
        path, checkpoint = rescue(self.save_lora, self.path), None
        with suppress(OSError):  # a disk that can't be read either
            checkpoint = newest_whole(self.path)[0]
        learned = f"what {self.updates} updates learned "
        learned += f"is in {path}" if path else "is lost, since it could not be saved anywhere else either"
        return f"{learned}; " + (
            f"{checkpoint} is whole: make room, then resume from it" if checkpoint else "there is no checkpoint"
        )

    def leave(self) -> None:
        """Close the metrics and let go of the folder."""
        if self.metrics:
            with suppress(OSError):  # what a full disk didn't take, and what has been said of it
                self.metrics.close()
        if self.lock:
            (self.path / LOCK).unlink(missing_ok=True)
            self.lock.release()
        if self.to_remove:
            with suppress(OSError):  # not empty: it is somebody's
                self.path.rmdir()

    def check_room(self, config: TrainingConfig, steps: Steps, first_update: int) -> tuple[int, int]:
        """(the least, the most) bytes that the run will write here. Says where the disk has no room for all of it; ValueError
        where not even for one checkpoint."""
        needed, warning = check_room(config, steps, first_update)
        if warning and self.main:
            print(f"warning: {warning}", file=sys.stderr)
        return (needed.least, needed.most) if needed else (0, 0)

    def begin(
        self,
        first_update: int,
        resume_from: Path | None,
        config: TrainingConfig,
        steps: Steps,
        accelerator: Any,
        seed: int,
        environment: dict[str, str],
    ) -> None:
        """Open the metrics with their start record. A run that is resumed keeps the records before `first_update`.

        What an earlier run left here is moved to earlier-N: all of it, or, of a run that is resumed from before its end, what
        came later.
        """
        self.updates = first_update
        if not self.main:
            return
        self.to_remove = False
        records = []
        if resume_from:
            records = read_metrics(resume_from.parent / METRICS)[1]
            records = [record for record in records if record["update"] < first_update]
        own = resume_from is not None and resume_from.parent.resolve() == self.path.resolve()
        self.put_earlier_run_aside(first_update if own else None)
        start = dict(
            event="start",
            num_processes=accelerator.num_processes,
            device=device_name(accelerator.device),
            mixed_precision=accelerator.mixed_precision,
            seed=seed,
            first_update=first_update,
            total_updates=steps.total_updates,
            updates_per_epoch=steps.updates_per_epoch,
            steps=asdict(steps),
            environment=environment,
            config={**asdict(config), "hub_token": None},
        )
        self.open_metrics("".join(map(_line, [start, *records])))

    def open_metrics(self, lines: str) -> None:
        """Start metrics.jsonl with these lines and open it for more; the old file stays until the new one is whole."""
        write_whole(self.path / METRICS, lambda part: part.write_text(lines))
        self.metrics = open(self.path / METRICS, "a+", buffering=1)

    def write_update(
        self, update: int, epoch: int, loss: float, lr: float, grad_norm: Any, seconds: float, skipped: bool
    ) -> None:
        """Add the record of an update, whose grad_norm is None where there was no clipping or an overflow."""
        self.updates = update + 1
        norm = None if grad_norm is None else float(grad_norm)
        more = {"skipped": True} if skipped else {}
        self.write(update=update, epoch=epoch, loss=loss, lr=lr, grad_norm=norm, seconds=round(seconds, 4), **more)

    def put_earlier_run_aside(self, kept: int | None = None) -> None:
        """Move what an earlier run left here to earlier-N, if there is any.

        kept: the update that it is resumed from. Then only later checkpoints move, if there are any, with the file of its end
        and a copy of its metrics.
        """
        earlier = [self.path / name for name in (METRICS, LORA, VALIDATION)]
        if self.path.resolve() in self.logging_dir.resolve().parents:  # logs outside are shared with other runs
            earlier.append(self.logging_dir)
        later = [path for path in called_checkpoints(self.path) if number(path) > (kept or 0)]
        if kept is not None:
            earlier = [self.path / LORA] if later else []
        earlier = [path for path in [*earlier, *later] if path.exists() or path.is_symlink()]
        if earlier:
            names = [path.name.removeprefix("earlier-") for path in self.path.glob("earlier-*")]
            aside = self.path / f"earlier-{1 + max((int(name) for name in names if name.isdecimal()), default=0)}"
            aside.mkdir()
            for path in earlier:
                shutil.move(path, aside / path.name)
            if kept is not None and (self.path / METRICS).exists():
                shutil.copy2(self.path / METRICS, aside)

    def write(self, **record: Any) -> None:
        """Add a record to the metrics; None for a number that is not finite. Raises NotWritten where the disk doesn't take it."""
        if os.fstat(self.metrics.fileno()).st_nlink == 0:
            self.make_again()
        try:
            self.metrics.write(_line(record))
        except OSError as error:
            raise NotWritten(f"{self.path / METRICS} can't be written: {reason(error)}") from error

    def make_again(self) -> None:
        """The folder was removed while the run goes on: make it again, with the metrics so far."""
        print(f"warning: {self.path} was removed, with its checkpoints; it is being made again", file=sys.stderr)
        self.metrics.seek(0)
        lines = self.metrics.read()
        self.metrics.close()
        if self.lock:
            self.lock.release()
            self.lock = None
        self.__enter__()
        self.to_remove = False
        self.open_metrics(lines)


def _line(record):
    return json.dumps(finite(record), allow_nan=False) + "\n"


def hold(path: Path) -> Any:
    """A `filelock.FileLock` that no other run holds; let go with its `release()`, or when this process ends, however it does.

    None, with a line that says so, on a disk without file locks. Raises ValueError where another run holds it.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    lock, new = FileLock(path, blocking=False), not path.exists()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # filelock's, where it takes to a soft lock
            lock.acquire()
        if not isinstance(lock, SoftFileLock):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
            return lock
    except Timeout:
        if not isinstance(lock, SoftFileLock):
            if not path.exists():
                return hold(path)  # the other run ended and took the file away in between
            holder = path.read_text().strip() or "another run"
            raise ValueError(
                f"output_dir {str(path.parent)!r} is in use by {holder}: choose another output_dir, or wait until it ends"
            ) from None
    except (OSError, NotImplementedError) as error:  # the latter is an older filelock's
        if new:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            lock.release()
            raise
    lock.release()  # a soft lock, the file alone, would outlive a run that is killed
    print(f"warning: no file locks on the disk of {path.parent}: see that no other run writes there", file=sys.stderr)
    return None
