"""A campaign on disk: a folder with its record and a Parquet file for each chunk of trials, each written once.

.. code-block:: text

    FOLDER/
      campaign.json                  the record: choices, digests, environment, sites
      golden.parquet                 the predictions of the fault-free model, a row for each image
      trials/chunk-000000.parquet    trials 0 to K-1 of every site, where K is the config's chunk_size
      trials/chunk-000001.parquet    trials K to 2K-1 of every site, and so on
      result.parquet                 all trials, once the campaign is complete

Every file is complete or absent, however the process ends. A chunk is named by its number alone, so the folder does not
depend on how many processes filled it or how often they were started. A result that you save is the same folder without
``trials``.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.differences import differences
from resilient_heads.campaign.result.record import CampaignRecord, parse_record
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.campaign.trials.trial_file import encode_golden, encode_trials, read_golden, read_trials
from resilient_heads.errors import DamagedChunkError, DamagedChunkWarning, ResultError, StoreError
from resilient_heads.files import leftovers, locked, write_atomic

RECORD, GOLDEN, TRIALS, RESULT = "campaign.json", "golden.parquet", "trials", "result.parquet"


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
            FileNotFoundError: The folder does not exist.
            ResultError: The folder does not hold a campaign, or its record is damaged.
        """
        path = Path(path)
        if path.is_file():
            raise ResultError(
                f"{path} is a file; expected the folder of a campaign with {RECORD}. This version of the library does "
                "not read results of earlier versions that consist of one file; run the campaign again."
            )
        if not path.exists():
            raise FileNotFoundError(f"There is no folder {path}.")
        content = _read_record(path)
        try:
            golden = read_golden(path / GOLDEN, sha256=content["golden_sha256"])
        except (ResultError, FileNotFoundError) as error:
            raise ResultError(
                f"{path / GOLDEN} is missing or damaged ({error}); run the campaign's command again to repair it."
            ) from error
        return cls(path, _record_from(path, content, golden))

    @classmethod
    def create(cls, path: str | os.PathLike[str], record: CampaignRecord) -> Self:
        """Write the record into a folder, or accept the folder if it already holds the same campaign.

        Raises:
            ResultError: The folder holds another campaign, or files of something else.
            StoreError: The folder cannot be written.
        """
        path = Path(path)
        with _explained(path, "be used"):
            path.mkdir(parents=True, exist_ok=True)
            with locked(path / ".lock", wait=True):
                _write_record(path, record)
        return cls(path, _record_from(path, _read_record(path), record.golden))

    @classmethod
    @contextlib.contextmanager
    def resume(cls, path: str | os.PathLike[str], record: CampaignRecord, *, shard: Shard) -> Iterator[Self]:
        """Open a folder to write one shard of a campaign, and keep other processes from writing the same shard.

        The first process writes the record; later ones must have an equal record. Half-written files of a killed
        process are removed.

        Args:
            path: The folder; it is created if it does not exist.
            record: The campaign.
            shard: The part of the campaign that this process runs.

        Raises:
            ResultError: The folder holds another campaign, or files of something else.
            StoreError: The folder cannot be written, or another process runs the same shard in it.
        """
        path = Path(path)
        with _explained(path, "be used"):
            path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _explained(path, "be used"):
                try:
                    stack.enter_context(locked(path / f".lock-{shard.rank}", wait=False))
                except BlockingIOError as error:
                    raise StoreError(
                        f"Another process is running shard {shard.rank} of {shard.world_size} in {path}; wait for it, "
                        "or pass another folder."
                    ) from error
            folder = cls.create(path, record)
            with _explained(path, "be used"):
                (path / TRIALS).mkdir(exist_ok=True)
            folder._remove_leftovers(shard)
            yield folder

    def file(self, chunk: int) -> Path:
        """Return the path of a chunk's file."""
        return self.path / TRIALS / f"chunk-{chunk:06d}.parquet"

    def read(self, chunk: int) -> Trials:
        """Return the trials of a chunk.

        Raises:
            FileNotFoundError: The chunk was not run yet.
            DamagedChunkError: The chunk's file is truncated or damaged.
            ResultError: The file does not belong to this campaign; it is left as it is.
        """
        trials = read_trials(self.file(chunk), self.record.layers, campaign=self._identity)
        site, number = self._expected(chunk)
        if not (np.array_equal(trials.site, site) and np.array_equal(trials.trial, number)):
            raise DamagedChunkError(f"{self.file(chunk)} does not hold the trials of chunk {chunk}")
        return trials

    def stored(self, shard: Shard) -> dict[int, Trials]:
        """Return the intact chunks of a shard; warn about each damaged one, which the campaign runs again.

        Raises:
            ResultError: A file does not belong to this campaign.
        """
        stored = {}
        for chunk in shard.chunks(self.record.num_chunks):
            try:
                stored[chunk] = self.read(chunk)
            except FileNotFoundError:
                continue
            except DamagedChunkError as damage:
                warnings.warn(DamagedChunkWarning(f"{damage}; its trials are run again."), stacklevel=3)
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
            ResultError: The campaign is not complete, or the file of its result is damaged.
        """
        try:
            trials = read_trials(self.path / RESULT, self.record.layers, campaign=self._identity)
        except FileNotFoundError as error:
            raise ResultError(
                f"{self.path} does not hold a complete campaign: it has no {RESULT}. Run the campaign's command again, "
                "or rh.merge_campaign(folder) when all its processes have ended."
            ) from error
        except DamagedChunkError as error:
            raise ResultError(f"{error}; run the campaign's command again to repair it.") from error
        if len(trials) and not 0 <= trials.image.min() <= trials.image.max() < len(self.record.golden.labels):
            raise ResultError(f"{self.path / RESULT} has trials of images that {GOLDEN} does not have.")
        return trials

    def write_result(self, trials: Trials) -> Path:
        """Write all trials of a complete campaign and return the path of the file.

        Raises:
            StoreError: The file cannot be written.
        """
        self._write(self.path / RESULT, trials)
        return self.path / RESULT

    def _write(self, path: Path, trials: Trials) -> None:
        """Write a file of trials."""
        content = encode_trials(trials, self.record.layers, campaign=self._identity)
        with _explained(path, "be written", "All chunks written before are kept. Make room"):
            write_atomic(path, content)

    def _expected(self, chunk: int) -> tuple[Any, Any]:
        """Return the columns ``site`` and ``trial`` of a chunk."""
        start, stop = self.record.chunk_bounds(chunk)
        numbers = [np.arange(start, max(start, min(stop, count))) for count in self.record.plan.counts]
        return np.repeat(np.arange(len(numbers)), [len(site_numbers) for site_numbers in numbers]), np.concatenate(
            numbers
        )

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
            _unlink_leftovers(self.path / RESULT)


def _write_record(path: Path, record: CampaignRecord) -> None:
    """Write the record and the golden run, or check that the folder has an equal record; the caller holds the lock."""
    for name in (RECORD, GOLDEN):
        _unlink_leftovers(path / name)
    if (path / RECORD).exists():
        if different := differences(_read_record(path), record.as_dict()):
            raise ResultError(
                f"{path} holds another campaign: {'; '.join(different)}. To continue that campaign, follow the advice "
                "in parentheses; for a new campaign, pass another folder."
            )
    else:
        for name in (TRIALS, GOLDEN, RESULT):
            if (path / name).exists():
                raise ResultError(f"{path} holds {name} but no {RECORD}; pass an empty folder.")
        write_atomic(path / RECORD, record.to_json().encode())
    golden = encode_golden(record.golden)
    if not (path / GOLDEN).exists() or (path / GOLDEN).read_bytes() != golden:
        write_atomic(path / GOLDEN, golden)


def _unlink_leftovers(path: Path) -> None:
    """Remove half-written files beside a path."""
    for entry in leftovers(path):
        entry.unlink(missing_ok=True)


def _read_record(path: Path) -> dict[str, Any]:
    """Return the values in the record of a folder."""
    try:
        return parse_record((path / RECORD).read_bytes())
    except FileNotFoundError as error:
        raise ResultError(f"{path} does not hold a campaign: it has no {RECORD}.") from error
    except ResultError as error:
        raise ResultError(f"{path / RECORD} cannot be used: {error}.") from error


def _record_from(path: Path, content: dict[str, Any], golden: GoldenRun) -> CampaignRecord:
    """Return the record that has these values."""
    try:
        return CampaignRecord.from_dict(content, golden)
    except ResultError as error:
        raise ResultError(f"{path / RECORD} cannot be used: {error}.") from error


@contextlib.contextmanager
def _explained(path: Path, action: str, advice: str = "Correct that") -> Iterator[None]:
    """Turn an OSError into a StoreError that says what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            error.errno, f"{path} cannot {action}: {reason}. {advice} and run the same command again"
        ) from error
