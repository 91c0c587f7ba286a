"""Each file of a campaign vouches for itself, and what the other files hold is written again."""

import json
import os
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import resilient_heads as rh
from helpers.small_campaign import campaign, files, labelled
from resilient_heads.campaign.run.execution import Execution
from resilient_heads.errors import ArgumentError, DamagedFileWarning, ResultError, StoreError

RECORD, GOLDEN, RESULT, CHUNK = "campaign.json", "golden.parquet", "result.parquet", "trials/chunk-000002.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted campaign; do not write to it."""
    folder = tmp_path_factory.mktemp("whole") / "campaign"
    campaign(folder)
    return folder


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    # These tests write thousands of files, and none of them cuts the power.
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    copy = tmp_path / "campaign"
    for name, content in files(whole).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    return copy


def require_noticed(folder: Path, name: str, written: dict[str, bytes]) -> None:
    """Load the result, or merge the chunks: an error or a warning names the file, and the trials are those written."""
    read = rh.merge_campaign if name == CHUNK else rh.CampaignResult.load
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        try:
            columns = read(folder).trials.columns
        except ResultError as error:
            columns, messages = None, [str(error)]
        else:
            messages = [str(warning.message) for warning in noticed]
    assert any(Path(name).name in message for message in messages)
    assert columns is None or {name: column.tobytes() for name, column in columns.items()} == written


def require_flips_noticed(folder: Path, name: str, places: list[int]) -> None:
    """Flip one bit of a file at a time; ``places`` are numbers of bits."""
    written = {name: column.tobytes() for name, column in rh.CampaignResult.load(folder).trials.columns.items()}
    content = (folder / name).read_bytes()
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        (folder / name).write_bytes(damaged)
        try:
            require_noticed(folder, name, written)
        except BaseException as error:
            error.add_note(f"bit {place % 8} of byte {place // 8}")
            raise


@pytest.mark.parametrize("name", [RECORD, GOLDEN, RESULT, CHUNK])
def test_a_flipped_bit_is_noticed(folder: Path, name: str) -> None:
    bits = 8 * len((folder / name).read_bytes())
    require_flips_noticed(folder, name, random.Random(5).sample(range(bits), 75))


@pytest.mark.slow
@pytest.mark.parametrize("name", [RECORD, GOLDEN, RESULT, CHUNK])
def test_flipped_bits_all_over_a_file_are_noticed(folder: Path, name: str) -> None:
    bits = 8 * len((folder / name).read_bytes())
    require_flips_noticed(folder, name, list(range(7, bits, max(1, bits // 1500))))


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["sites"][0].update(shape=[3000, *record["sites"][0]["shape"][1:]]),
        lambda record: record["sites"][0].update(name="conv1"),
        lambda record: record["sites"][1].update(in_classifier=False),
        lambda record: record["config"].update(seed=4),
        lambda record: record["config"].update(modules=["head"]),
        lambda record: record["environment"].update(python="2.7"),
        lambda record: record.update(model_sha256="0" * 64),
        lambda record: record.update(golden_sha256="0" * 64),
        lambda record: record.update(sha256="0" * 64),
        lambda record: record.update(uninjectable={"head": "none"}),
        lambda record: record.pop("excluded"),
        lambda record: record.update(note="mine"),
    ],
)
def test_an_edited_record_is_noticed(folder: Path, edit: Callable[[dict], object]) -> None:
    written, record = files(folder), json.loads((folder / RECORD).read_text())
    edit(record)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    with pytest.warns(DamagedFileWarning, match=r"campaign\.json is damaged: it was edited.*read from result\.parquet"):
        found = rh.CampaignResult.load(folder)
    assert found.record.to_json().encode() == written[RECORD]
    (folder / RESULT).unlink()
    for read in (rh.CampaignResult.load, rh.merge_campaign):
        with pytest.raises(ResultError, match=r"campaign\.json is damaged: it was edited.*run the campaign's command"):
            read(folder)
    with pytest.warns(DamagedFileWarning, match=r"campaign\.json is damaged.*written again"):
        campaign(folder)
    assert files(folder) == written


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "lost": lambda content: None,
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "half": lambda content: content[: len(content) // 2],
}


def spoil(path: Path, damage: str) -> None:
    content = DAMAGES[damage](path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [RECORD, GOLDEN, RESULT, CHUNK])
def test_one_spoilt_file_is_written_again(
    folder: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the other files and the golden run, without a trial."""
    monkeypatch.setattr(Execution, "run", None)
    written = files(folder)
    spoil(folder / name, damage)
    reported = name != RESULT or damage != "lost"  # a lost result is what a campaign that was stopped leaves
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", DamagedFileWarning)
        campaign(folder)
    assert any(Path(name).name in str(warning.message) for warning in noticed) == reported
    assert files(folder) == written


def test_what_a_spoilt_folder_can_still_tell(folder: Path, tmp_path: Path) -> None:
    """A table: what is spoilt, and where the trials are read from, or what the error says."""
    table = {
        (RECORD,): r"campaign\.json is missing. The record was read from result\.parquet",
        (RESULT,): r"no result\.parquet. The trials were read from the chunks",
        (RESULT, CHUNK): "ERROR 1 of 12 chunks are missing: 2. Run the campaign's command again",
        (RECORD, RESULT): r"ERROR campaign\.json is missing; run the campaign's command again to repair it",
        (GOLDEN,): r"ERROR golden\.parquet is missing; run the campaign's command again to repair it",
        (RESULT, "trials"): r"ERROR it has no result\.parquet. Run the campaign's command again",
        (RECORD, RESULT, GOLDEN, "trials"): r"ERROR does not hold a campaign: it has no campaign\.json",
    }
    for number, (spoilt, message) in enumerate(table.items()):
        part = tmp_path / str(number)
        for name, content in files(folder).items():
            if not name.startswith(spoilt):
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(content)
        part.mkdir(exist_ok=True)
        if message.startswith("ERROR "):
            with pytest.raises(ResultError, match=message.removeprefix("ERROR ")):
                rh.CampaignResult.load(part)
        else:
            with pytest.warns(DamagedFileWarning, match=message):
                assert len(rh.CampaignResult.load(part).trials) == 180


def test_a_lost_record_is_not_written_over_another_campaign(folder: Path) -> None:
    (folder / RECORD).unlink()
    before = files(folder)
    with pytest.raises(ResultError, match=r"holds another campaign: seed is 0 there and 5 now"):
        campaign(folder, seed=5)
    (folder / RESULT).unlink()
    with pytest.raises(ResultError, match=r"chunk-000000\.parquet belongs to another campaign"):
        campaign(folder, seed=5)
    assert {**files(folder), RESULT: before[RESULT]} == before


def test_a_saved_result_is_completed_without_a_trial(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rh.CampaignResult.load(whole).save(tmp_path / "saved")
    monkeypatch.setattr(Execution, "run", None)
    with pytest.warns(DamagedFileWarning, match=r"lacked chunk-000000\.parquet.*written again from result"):
        campaign(path)
    assert files(path) == files(whole)


def test_files_in_the_place_of_others_are_refused(folder: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    campaign(other, seed=1, layers=["fc"], data=tuple(part[:9] for part in labelled()))
    for name, message in {
        GOLDEN: r"golden\.parquet belongs to another campaign",
        RESULT: r"result\.parquet belongs to another campaign",
        RECORD: r"golden\.parquet belongs to another campaign",
    }.items():
        (folder / name).write_bytes(files(other)[name])
        with pytest.raises(ResultError, match=message):
            rh.CampaignResult.load(folder)
        (folder / name).write_bytes(files(whole)[name])
    (folder / RESULT).write_bytes(files(other)[RESULT])
    with pytest.raises(ResultError, match=r"result\.parquet belongs to another campaign"):
        campaign(folder)


def parquet_of_others() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize("name", [RECORD, GOLDEN, RESULT, CHUNK])
def test_a_folder_in_the_place_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    (folder / name / "mine.txt").write_text("notes")
    message = f"{re.escape(Path(name).name)} is a folder; expected a file. Move it away"
    readers = [rh.merge_campaign, campaign] if name == CHUNK else [rh.CampaignResult.load, campaign]
    for read in readers:
        with pytest.raises(ResultError, match=message):
            read(folder)
    if name == RESULT:
        with pytest.raises(StoreError, match=r"result\.parquet is a folder, and a file is expected; pass another path"):
            rh.merge_campaign(folder)
    assert (folder / name / "mine.txt").read_text() == "notes"


@pytest.mark.parametrize("name", [GOLDEN, RESULT, CHUNK])
@pytest.mark.parametrize("content", [parquet_of_others(), b"notes", b"PK\3\4zip"])
def test_files_of_other_programs_are_refused_and_left(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    readers = [campaign] if name == CHUNK else [rh.CampaignResult.load, campaign]
    for read in readers:
        with pytest.raises(ResultError, match=f"{re.escape(name)} is not a (Parquet file|file of this library); move"):
            read(folder)
    assert (folder / name).read_bytes() == content


def test_what_is_no_folder_of_a_campaign(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "notes.txt").write_text("notes")
    link = tmp_path / "link"
    link.symlink_to(whole)
    assert len(rh.CampaignResult.load(link).trials) == 180
    cases = {
        whole / RESULT: rf"one file of a campaign; pass its folder, {re.escape(str(whole))}\.",
        tmp_path / "notes.txt": "is a file; expected the folder of a campaign",
        Path("/dev/null"): "is a device; expected the folder",
        tmp_path / "loop": "is a broken link",
        tmp_path / "empty": r"does not hold a campaign: it has no campaign\.json",
        whole.parent: rf"Did you mean {re.escape(str(whole))}\?",
        whole.parent / "campain": rf"There is no folder .*campain; did you mean {re.escape(str(whole))}\?",
        tmp_path / "a/b/c": rf"There is no folder .*; {re.escape(str(tmp_path))} exists",
    }
    for path, message in cases.items():
        for read in (rh.CampaignResult.load, rh.merge_campaign):
            with pytest.raises(ResultError, match=message):
                read(path)
    for wrong in (None, 3, "a\0b", ["run"]):
        with pytest.raises(ArgumentError, match="The folder of a campaign must be a path"):
            rh.CampaignResult.load(wrong)  # type: ignore[arg-type]


def test_a_file_without_permission_is_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == RESULT:
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ResultError, match=r"result\.parquet cannot be read: Permission denied"):
        rh.CampaignResult.load(folder)
