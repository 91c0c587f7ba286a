"""A campaign on disk: a folder with its record and a Parquet file for each chunk of trials, each written once.

.. code-block:: text

    FOLDER/
      campaign.json                  the record: choices, digests, environment, sites
      golden.parquet                 the predictions of the fault-free model, a row for each image
      trials/chunk-000000.parquet    trials 0 to K-1 of every site, where K is the config's chunk_size
      trials/chunk-000001.parquet    trials K to 2K-1 of every site, and so on
      result.parquet                 all trials, once the campaign is complete

Every file is complete or absent, however the process ends. A chunk is named by its number alone, so the folder does not
depend on how many processes filled it or how often they were started. The file of a chunk may hold a part of its trials
while the campaign runs or after it was stopped. A result that you save is the same folder without ``trials``.

Each file holds a digest of all its bytes. Files of trials also hold the identity of the campaign, which covers the
record and the golden run. What a damaged or lost file can be written from again:

.. code-block:: text

    campaign.json      its copy in result.parquet; or the campaign's command
    golden.parquet     the campaign's command, which runs the fault-free model anyway
    a chunk            result.parquet; or the campaign's command, which runs its trials again
    result.parquet     the chunks
"""

import contextlib
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.record_file import (
    GOLDEN,
    RECORD,
    RESULT,
    TRIALS,
    note,
    read_record,
    stored_values,
    unlink_leftovers,
    write_record,
)
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.campaign.trials.parquet import require_pyarrow
from resilient_heads.campaign.trials.trial_file import encode_trials, read_trials
from resilient_heads.errors import ArgumentError, DamagedFileError, ResultError, StoreError
from resilient_heads.files import as_path, locked, make_folder, write_atomic


@contextlib.contextmanager
def reserved(given: str | os.PathLike[str], shard: Shard) -> Iterator[Path]:
    """Make the folder of a campaign, and keep other processes from running the same shard in it.

    A folder into which the block writes nothing is removed.

    Raises:
        ResultError: The folder holds a campaign of another version, or a file of something else.
        StoreError: The folder cannot be written, or another process runs the same shard in it.
        MissingExtraError: pyarrow is not installed.
    """
    require_pyarrow()
    path = as_path(given, "output", error=ArgumentError)
    with contextlib.ExitStack() as stack:
        with _explained(path, "be used"):
            if not path.exists():
                stack.callback(_remove_empty, path)
            make_folder(path)
            try:
                stack.enter_context(locked(path / f".lock-{shard.rank}", wait=False))
            except BlockingIOError as error:
                raise StoreError(
                    f"Another process is running shard {shard.rank} of {shard.world_size} in {path}; wait for it, or "
                    "pass another folder."
                ) from error
        with contextlib.suppress(DamagedFileError):
            stored_values(path)
        yield path


class CampaignFolder:
    """The folder of one campaign. Make it with :meth:`open`, :meth:`create` or :meth:`resume`.

    Attributes:
        path: The folder.
        record: The campaign's record, as the folder has it.
    """

    def __init__(self, path: Path, record: CampaignRecord) -> None:
        self.path = path
        self.record = record
        self._identity = record.identity
        self._refuse_foreign_chunks()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the folder of a campaign to read it.

        Raises:
            ArgumentError: ``path`` is not a path.
            ResultError: The folder does not exist or holds no campaign, or its record is lost or damaged.
        """
        folder = _existing(as_path(path, "The folder of a campaign", error=ArgumentError))
        return cls(folder, read_record(folder))

    @classmethod
    def create(cls, path: str | os.PathLike[str], record: CampaignRecord) -> Self:
        """Write the record into a folder, or accept the folder if it already holds the same campaign.

        Raises:
            ResultError: The folder holds another campaign, or files of something else.
            StoreError: The folder cannot be written.
        """
        path = as_path(path, "The folder of a campaign", error=ArgumentError)
        with _explained(path, "be used"):
            make_folder(path)
            with locked(path / ".lock", wait=True):
                return cls(path, write_record(path, record))

    @classmethod
    def resume(cls, path: Path, record: CampaignRecord, *, shard: Shard) -> Self:
        """Open a folder to write one shard of a campaign; the caller has :func:`reserved` it.

        The first process writes the record; later ones must have an equal record. Half-written files of a killed
        process are removed.

        Raises:
            ResultError: The folder holds another campaign, or files of something else.
            StoreError: The folder cannot be written.
        """
        folder = cls.create(path, record)
        with _explained(path, "be used"):
            make_folder(path / TRIALS)
            folder._remove_leftovers(shard)
        return folder

    def file(self, chunk: int) -> Path:
        """Return the path of a chunk's file."""
        return self.path / TRIALS / f"chunk-{chunk:06d}.parquet"

    def read(self, chunk: int) -> Trials:
        """Return the trials in a chunk's file: all of the chunk, or a part of them.

        Raises:
            FileNotFoundError: The chunk was not run yet.
            DamagedFileError: The chunk's file is truncated or damaged.
            ResultError: The file does not belong to this campaign; it is left as it is.
        """
        trials = read_trials(self.file(chunk), campaign=self._identity)
        site, number = self.record.numbers(*self.record.chunk_bounds(chunk))
        count = int(number.max(initial=0)) + 1
        found, expected = trials.site * count + trials.trial, site * count + number
        if not (np.isin(found, expected).all() and (np.diff(found) > 0).all()):
            raise DamagedFileError(f"{self.file(chunk)} does not hold the trials of chunk {chunk}")
        return trials

    def stored(self, shard: Shard) -> dict[int, Trials]:
        """Return what the folder has of a shard's chunks; repair chunks from the result, and report damaged files.

        Raises:
            ResultError: A file does not belong to this campaign.
            StoreError: A chunk cannot be written.
        """
        result, stored, repaired = self._intact_result(), {}, []
        for chunk in shard.chunks(self.record.num_chunks):
            with contextlib.suppress(FileNotFoundError):
                try:
                    stored[chunk] = self.read(chunk)
                except DamagedFileError as damage:
                    note(f"{damage}. The campaign writes it again.")
            size = self.record.trials_in(chunk)
            if result is None or len(stored.get(chunk, ())) == size:
                continue
            start, stop = self.record.chunk_bounds(chunk)
            part = result.where((result.trial >= start) & (result.trial < stop))
            if len(part) == size:  # else the stopping rule was met before this chunk
                self.write(chunk, part)
                stored[chunk] = part
                repaired.append(self.file(chunk).name)
        if repaired:
            note(f"{self.path / TRIALS} lacked {', '.join(repaired[:5])}; written again from {RESULT}.")
        return stored

    def write(self, chunk: int, trials: Trials) -> None:
        """Write the trials of a chunk.

        Raises:
            StoreError: The file cannot be written; files that were written before are kept.
        """
        self._write(self.file(chunk), trials)

    def read_result(self) -> Trials:
        """Return all trials of a complete campaign.

        Raises:
            FileNotFoundError: The folder has no file of the result.
            DamagedFileError: The file is truncated or damaged.
            ResultError: The file does not belong to this campaign.
        """
        trials = read_trials(self.path / RESULT, campaign=self._identity)
        if not self.record.is_whole(trials):
            raise DamagedFileError(f"{self.path / RESULT} does not hold all trials of the campaign")
        return trials

    def write_result(self, trials: Trials) -> Path:
        """Write all trials of a complete campaign and return the path of the file.

        Raises:
            StoreError: The file cannot be written.
        """
        self._write(self.path / RESULT, trials)
        return self.path / RESULT

    def _write(self, path: Path, trials: Trials) -> None:
        """Write a file of trials; the result holds a copy of the record."""
        record = self.record.to_json() if path.name == RESULT else None
        content = encode_trials(trials, self.record.layers, campaign=self._identity, record=record)
        with _explained(path, "be written", "All chunks written before are kept. "):
            write_atomic(path, content)

    def _intact_result(self) -> Trials | None:
        """Return the trials in the file of the result; None if it is lost, and if it is damaged, which is reported."""
        try:
            return self.read_result()
        except FileNotFoundError:
            return None
        except DamagedFileError as damage:
            note(f"{damage}. The campaign writes it again.")
            return None

    def _refuse_foreign_chunks(self) -> None:
        """Raise ResultError if the folder of trials holds a file that is not a chunk of this campaign."""
        folder = self.path / TRIALS
        known = {self.file(chunk).name for chunk in range(self.record.num_chunks)}
        present = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        foreign = [name for name in present if name not in known and not name.startswith(".")]
        if foreign:
            raise ResultError(
                f"{folder} holds {', '.join(foreign[:5])}, which the campaign in {self.path / RECORD} does not have; "
                "move it away."
            )

    def _remove_leftovers(self, shard: Shard) -> None:
        """Remove the half-written files of a killed process of the same shard."""
        names = {self.file(chunk).name for chunk in shard.chunks(self.record.num_chunks)}
        for entry in (self.path / TRIALS).glob(".chunk-*.parquet.*"):
            if entry.name[1:].rpartition(".")[0] in names:
                entry.unlink(missing_ok=True)
        if shard.rank == 0:
            unlink_leftovers(self.path / RESULT)


def _existing(path: Path) -> Path:
    """Return a path that is a folder, or raise ResultError that says what is there instead."""
    if path.is_dir():
        return path
    if path.name in (RECORD, GOLDEN, RESULT) and path.is_file():
        raise ResultError(f"{path} is one file of a campaign; pass its folder, {path.parent}.")
    if os.path.lexists(path):
        kind = "file" if path.is_file() else "broken link" if path.is_symlink() else "device"
        raise ResultError(f"{path} is a {kind}; expected the folder of a campaign, with {RECORD}.")
    parent = next(folder for folder in (*path.parents, Path()) if folder.is_dir())
    names = [entry.parent.name for entry in parent.glob(f"*/{RECORD}")]
    close = difflib.get_close_matches(path.relative_to(parent).parts[0], names, n=1, cutoff=0.5) if names else []
    advice = f"did you mean {parent / close[0]}?" if close else f"{parent.resolve()} exists."
    raise ResultError(f"There is no folder {path}; {advice}")


def _remove_empty(path: Path) -> None:
    """Remove a folder that is empty."""
    with contextlib.suppress(OSError):
        path.rmdir()


@contextlib.contextmanager
def _explained(path: Path, action: str, kept: str = "") -> Iterator[None]:
    """Turn an OSError into a StoreError that says what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            error.errno, f"{path} cannot {action}: {reason}. {kept}Then run the same command again."
        ) from error
