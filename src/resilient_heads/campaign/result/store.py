"""A campaign on disk: a folder with its record and a Parquet file for each chunk of trials, each written once.

.. code-block:: text

    FOLDER/
      campaign.json                  what is run, on what; see CampaignRecord
      golden.parquet                 the fault-free model's predictions, a row for each image
      trials/chunk-000000.parquet    the trials number 0 to K-1 of every site, K being the config's chunk_size
      trials/chunk-000001.parquet    K to 2K-1, and so on
      result.parquet                 all of it in one file, once it is complete

A file is there whole or not at all, whatever ends the process. Chunks are named by their number alone, so the folder
does not depend on how many processes filled it or how often they were started.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from resilient_heads.campaign.result.record import CampaignRecord, differences, parse
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.campaign.trials.parquet import MAGIC, decode
from resilient_heads.campaign.trials.trial_file import decode_golden, encode_golden, encode_trials, trials_from
from resilient_heads.errors import DamagedChunkError, DamagedChunkWarning, ResultError, StoreError
from resilient_heads.files import leftovers, locked, write_atomic

RECORD, GOLDEN, TRIALS, RESULT = "campaign.json", "golden.parquet", "trials", "result.parquet"
_CAMPAIGN = "resilient_heads.campaign"


class CampaignFolder:
    """The folder of one campaign. Make it with :meth:`open` or :meth:`resume`.

    Args:
        path: The folder.
        record: The campaign's record, as the folder has it.

    Attributes:
        path: The folder.
        record: The campaign's record.
        chunks: How many chunks the whole campaign has.
    """

    def __init__(self, path: Path, record: CampaignRecord) -> None:
        self.path = path
        self.record = record
        self.chunks = -(-max(record.plan.counts) // record.config.chunk_size)
        self._identity = record.identity
        self._check_names()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the folder of a campaign to read it.

        Raises:
            ResultError: The folder holds no campaign, or one that is damaged.
        """
        path = Path(path)
        content = _read_record(path)
        try:
            golden = decode_golden((path / GOLDEN).read_bytes(), content["golden_sha256"])
        except (ResultError, FileNotFoundError) as error:
            raise ResultError(
                f"{path / GOLDEN} is missing or damaged ({error}); run the campaign's command again to mend it."
            ) from error
        return cls(path, _record_from(path, content, golden))

    @classmethod
    @contextlib.contextmanager
    def resume(cls, path: str | os.PathLike[str], record: CampaignRecord, *, shard: Shard) -> Iterator[Self]:
        """Open a folder to write one shard of a campaign into it; make it if it is new.

        The first process writes the record; those that come later must bring the same. What a killed process left
        behind is removed.

        Args:
            path: The folder.
            record: What is about to be run.
            shard: Which part of it this process runs.

        Raises:
            ResultError: The folder holds another campaign, or files of something else.
            StoreError: It cannot be written, or another process runs the same shard in it.
        """
        path = Path(path)
        with _explaining(path, "be used"):
            (path / TRIALS).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _explaining(path, "be used"):
                try:
                    stack.enter_context(locked(path / f".lock-{shard.rank}", wait=False))
                except BlockingIOError as error:
                    raise StoreError(
                        f"Another process is running shard {shard.rank} of {shard.world_size} in {path}; wait for it, "
                        "or pass another folder."
                    ) from error
                with locked(path / ".lock", wait=True):
                    _start(path, record)
            kept = parse((path / RECORD).read_bytes())
            folder = cls(path, _record_from(path, kept, record.golden))
            folder._clean(shard)
            yield folder

    def numbers(self, chunk: int) -> tuple[int, int]:
        """Return the number of a chunk's first trial at each site, and that behind its last."""
        size = self.record.config.chunk_size
        return chunk * size, min((chunk + 1) * size, max(self.record.plan.counts))

    def file(self, chunk: int) -> Path:
        """Return where a chunk is kept."""
        return self.path / TRIALS / f"chunk-{chunk:06d}.parquet"

    def missing(self) -> list[int]:
        """Return the chunks that have no file yet."""
        return [chunk for chunk in range(self.chunks) if not self.file(chunk).exists()]

    def read(self, chunk: int) -> Trials:
        """Return the trials of a chunk.

        Raises:
            FileNotFoundError: It was not run yet.
            DamagedChunkError: The file is truncated or damaged.
            ResultError: The file is something else, and stays as it is.
        """
        path = self.file(chunk)
        content = path.read_bytes()
        if not (MAGIC.startswith(content[:4]) or content[:4] == bytes(4)):
            raise ResultError(f"{path} is no Parquet file; move it away and run the campaign's command again.")
        try:
            columns, metadata = decode(content)
        except ResultError as error:
            raise DamagedChunkError(f"{path} is damaged ({error})") from error
        if _CAMPAIGN not in metadata:
            raise ResultError(f"{path} is not of this library; move it away and run the campaign's command again.")
        if metadata[_CAMPAIGN] != self._identity:
            raise ResultError(
                f"{path} belongs to another campaign than {self.path / RECORD}; move it away and run the campaign's "
                "command again."
            )
        try:
            trials = trials_from(columns, metadata, self.record.layers)
        except ResultError as error:
            raise DamagedChunkError(f"{path} is damaged ({error})") from error
        sites, numbers = self._expected(chunk)
        if not (np.array_equal(trials.site, sites) and np.array_equal(trials.trial, numbers)):
            raise DamagedChunkError(f"{path} does not hold the trials of chunk {chunk}")
        return trials

    def stored(self, shard: Shard) -> dict[int, Trials]:
        """Return the chunks of a shard that need not be run again; warn of each that is damaged.

        Raises:
            ResultError: A file is something else.
        """
        found = {}
        for chunk in shard.chunks(self.chunks):
            try:
                found[chunk] = self.read(chunk)
            except FileNotFoundError:
                continue
            except DamagedChunkError as damage:
                warnings.warn(DamagedChunkWarning(f"{damage}; its trials are run again."), stacklevel=3)
        return found

    def write(self, chunk: int, trials: Trials) -> None:
        """Write the trials of a chunk.

        Raises:
            StoreError: They cannot be written; what was written before is unharmed.
        """
        content = encode_trials(trials, self.record.layers, {_CAMPAIGN: self._identity})
        self._write(self.file(chunk), content)

    def write_result(self, content: bytes | memoryview) -> Path:
        """Write the file of the complete result.

        Raises:
            StoreError: It cannot be written.
        """
        self._write(self.path / RESULT, content)
        return self.path / RESULT

    def _write(self, path: Path, content: bytes | memoryview) -> None:
        with _explaining(path, "be written", "All chunks written before are kept. Make room"):
            write_atomic(path, content)

    def _expected(self, chunk: int) -> tuple[Any, Any]:
        """Return the columns ``site`` and ``trial`` of a chunk."""
        start, stop = self.numbers(chunk)
        numbers = [np.arange(start, max(start, min(stop, count))) for count in self.record.plan.counts]
        return np.repeat(np.arange(len(numbers)), [len(own) for own in numbers]), np.concatenate(numbers)

    def _check_names(self) -> None:
        """Raise ResultError where the folder of trials holds a file that is no chunk of this campaign."""
        folder = self.path / TRIALS
        known = {self.file(chunk).name for chunk in range(self.chunks)}
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        foreign = [name for name in found if name not in known and not name.startswith(".")]
        if foreign:
            raise ResultError(
                f"{folder} holds {', '.join(foreign[:5])}, which the campaign in {self.path / RECORD} does not have; "
                "move it away."
            )

    def _clean(self, shard: Shard) -> None:
        """Remove what a killed process of the same shard was writing."""
        names = {self.file(chunk).name for chunk in shard.chunks(self.chunks)}
        for entry in (self.path / TRIALS).glob(".chunk-*.parquet.*"):
            if entry.name[1:].rpartition(".")[0] in names:
                entry.unlink(missing_ok=True)
        if shard.rank == 0:
            for entry in leftovers(self.path / RESULT):
                entry.unlink(missing_ok=True)


def _start(path: Path, record: CampaignRecord) -> None:
    """Write the record, or check that it is the one that the folder has; the caller keeps others out."""
    for name in (RECORD, GOLDEN):
        for entry in leftovers(path / name):
            entry.unlink(missing_ok=True)
    now = record.as_dict()
    if (path / RECORD).exists():
        found = differences(_read_record(path), now)
        if found:
            raise ResultError(
                f"{path} holds another campaign: {'; '.join(found)}. To go on with it, do as said; for a new campaign, "
                "pass another folder."
            )
    else:
        for name in (TRIALS, GOLDEN, RESULT):
            if (path / name).exists():
                raise ResultError(f"{path} holds {name} but no {RECORD}; pass an empty folder.")
        write_atomic(path / RECORD, record.to_json().encode())
    content = encode_golden(record.golden)
    if not (path / GOLDEN).exists() or (path / GOLDEN).read_bytes() != content:
        write_atomic(path / GOLDEN, content)
    (path / TRIALS).mkdir(exist_ok=True)


def _read_record(path: Path) -> dict[str, Any]:
    """Return what the record says, unchecked but for its format."""
    try:
        return parse((path / RECORD).read_bytes())
    except FileNotFoundError as error:
        raise ResultError(f"{path} holds no campaign: there is no {RECORD} in it.") from error
    except ResultError as error:
        raise ResultError(f"{path / RECORD}: {error}.") from error


def _record_from(path: Path, content: dict[str, Any], golden: Any) -> CampaignRecord:
    """Return the record, naming its file where it is damaged."""
    try:
        return CampaignRecord.from_dict(content, golden)
    except ResultError as error:
        raise ResultError(f"{path / RECORD}: {error}.") from error


@contextlib.contextmanager
def _explaining(path: Path, what: str, advice: str = "Mend that") -> Iterator[None]:
    """Turn an OSError into a StoreError that says what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            error.errno, f"{path} cannot {what}: {reason}. {advice} and run the same command again"
        ) from error
