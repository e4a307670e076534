"""A file that was changed is refused when it is read; a kill is no damage."""

import json

import numpy as np
import pytest

from tpmm_jax.data.records import Judgement
from tpmm_jax.errors import CorruptCheckpoint, StorageError
from tpmm_jax.store import digests
from tpmm_jax.store.digests import (
    DIGESTS,
    check_folder,
    compact,
    is_finished,
    list_folder,
    listing,
    read_listed,
    read_npz,
    remove_listed,
    write_listed,
    write_listed_json,
    write_npz,
)
from tpmm_jax.store.mending import damaged_files
from tpmm_jax.store.records import (
    append_records,
    read_growing_records,
    read_records,
    resume_records,
    write_records,
)


def verdict(n):
    return Judgement(
        set="", judge="j", against="theta_0", prompt=n, sample=0,
        first=0.5, second=0.5, win=0.5,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The folder of an iteration with a file of each kind."""
    folder = tmp_path / "run" / "iterations" / "002"
    write_records(folder / "pairs.jsonl", [verdict(n) for n in range(5)])
    write_listed_json(folder / "reference.json", {"weights": [[0.5, 0.5]]})
    write_npz(folder / "reference_logps.npz", {"logps_MN": np.arange(6.0)})
    for at in (0, 2):
        append_records(
            folder / "judgements.jsonl", [verdict(at), verdict(at + 1)], at=at
        )
    return folder


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


HARM = {
    "a value changed": lambda lines: [
        *lines[:2], lines[2].replace(b"0.5", b"0.6", 1), *lines[3:]
    ],
    "a line lost": lambda lines: [*lines[:2], *lines[3:]],
    "two lines swapped": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "a line torn": lambda lines: [*lines[:2], lines[2][:9], *lines[3:]],
    "a line that is not UTF-8": lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[3:]],
    "a line added": lambda lines: [*lines[:2], lines[0], *lines[2:]],
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["pairs.jsonl", "judgements.jsonl"])
def test_a_changed_line_is_named(folder, name, harm):
    path = folder / name
    path.write_bytes(b"".join(HARM[harm](lines_of(path))))
    said = rf"002/{name}, line 3 is .*`tpmm repair .*/run`.* iteration 2 makes it again"
    with pytest.raises(CorruptCheckpoint, match=said):
        read_records(path, Judgement)
    with pytest.raises(CorruptCheckpoint, match=said):
        resume_records(path, Judgement, lambda n: n)


@pytest.mark.parametrize("cut", [1, 30])
def test_lost_ends_are_named_where_the_file_is_finished(folder, cut):
    path = folder / "pairs.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CorruptCheckpoint, match=r"line 5 is not what was written"):
        read_records(path, Judgement)
    path.write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match=r"line 1 is missing: 5 were written"):
        read_records(path, Judgement)


def test_json_and_arrays_are_compared(folder):
    path = folder / "reference.json"
    path.write_text(path.read_text().replace("0.5", "0.6", 1))
    with pytest.raises(CorruptCheckpoint, match=r"reference\.json, line 4 is not"):
        digests.read_listed_json(path)
    arrays = folder / "reference_logps.npz"
    np.savez(arrays, logps_MN=np.arange(6.0)[::-1])
    with pytest.raises(CorruptCheckpoint, match=r"reference_logps\.npz is not what"):
        read_npz(arrays)


@pytest.mark.parametrize("end", [b"\n\n", b"", b"\r\n"])
def test_what_an_editor_does_to_the_end_of_json_is_no_damage(folder, end):
    path = folder / "reference.json"
    path.write_bytes(path.read_bytes().rstrip(b"\n") + end)
    assert digests.read_listed_json(path) == {"weights": [[0.5, 0.5]]}
    check_folder(folder)
    assert damaged_files(folder) == {}
    # A file that came without a line break at its end, as a model's may.
    (folder / "tokenizer.json").write_text("{}")
    list_folder(folder)
    (folder / "tokenizer.json").write_text("{}\n")
    check_folder(folder)
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(CorruptCheckpoint, match=r"reference\.json, line"):
        check_folder(folder)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY\x01", b"nonsense"])
def test_arrays_that_are_none_are_told_from_a_file_without_digests_too(tmp_path, data):
    (tmp_path / "old.npz").write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=r"old\.npz holds no arrays"):
        read_npz(tmp_path / "old.npz")


def test_a_kill_between_bytes_and_digests_leaves_what_is_unfinished(folder):
    path, listed = folder / "judgements.jsonl", folder / DIGESTS
    before = listed.read_bytes()
    append_records(path, [verdict(4), verdict(5)], at=4)
    listed.write_bytes(before)
    assert read_growing_records(path, Judgement) == [verdict(n) for n in range(4)]
    assert resume_records(path, Judgement, lambda n: n // 2 * 2) == [
        verdict(n) for n in range(4)
    ]
    assert len(lines_of(path)) == 4
    # A whole file, and the line of digests torn half-way.
    write_listed(folder / "summary.json", b"{}\n")
    listed.write_bytes(listed.read_bytes()[:-7])
    assert not is_finished(folder / "summary.json")
    write_listed(folder / "summary.json", b"[]\n")
    assert is_finished(folder / "summary.json") and listing(folder)["pairs.jsonl"]


def test_what_went_missing_has_to_come_out_as_it_was(folder):
    path = folder / "pairs.jsonl"
    same = read_records(path, Judgement)
    path.unlink()
    assert not is_finished(path)
    with pytest.raises(CorruptCheckpoint, match=r"line 1: made again, it is not"):
        write_records(path, same[::-1])
    assert not path.exists()
    before = (folder / DIGESTS).read_bytes()
    write_records(path, same)
    assert is_finished(path) and (folder / DIGESTS).read_bytes() == before


def test_lost_batches_come_again_as_they_were(folder):
    path = folder / "judgements.jsonl"
    path.write_bytes(b"".join(lines_of(path)[:3]))
    whole = resume_records(path, Judgement, lambda n: n // 2 * 2)
    assert whole == [verdict(0), verdict(1)]
    with pytest.raises(CorruptCheckpoint, match=r"line 4: made again"):
        append_records(path, [verdict(2), verdict(9)], at=2)
    append_records(path, [verdict(2), verdict(3)], at=2)
    assert read_records(path, Judgement) == [verdict(n) for n in range(4)]


def test_a_file_that_may_change_is_taken_back_before_its_new_bytes(folder, monkeypatch):
    path = folder / "reference_logps.npz"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digests, "write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            write_npz(path, {"logps_MN": np.ones(6)})
    assert path.exists() and not is_finished(path)
    write_npz(path, {"logps_MN": np.ones(6)})
    assert read_npz(path)["logps_MN"].sum() == 6
    remove_listed(path)
    assert not path.exists() and path.name not in listing(folder)
    remove_listed(path)


def test_the_list_compacted_says_the_same_in_the_order_of_names(folder):
    write_npz(folder / "reference_logps.npz", {"logps_MN": np.ones(6)})
    before = listing(folder)
    assert len(lines_of(folder / DIGESTS)) == 7
    compact(folder)
    assert listing(folder) == before
    rows = [json.loads(line)["file"] for line in lines_of(folder / DIGESTS)]
    assert rows == sorted(before) and len(rows) == 4


@pytest.mark.parametrize("line", [b"{}\n", b"\xff\n", b"[[\n", b""])
def test_a_broken_line_of_digests_is_named(folder, line):
    path = folder / DIGESTS
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:3], line, *lines[4:]]))
    with pytest.raises(CorruptCheckpoint, match=r"digests\.jsonl.* line 4 is not"):
        is_finished(folder / "pairs.jsonl")


def test_a_folder_of_others_files_is_checked_by_name(tmp_path):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"rms_norm_eps": 1e-06}\n')
    (folder / "tokenizer.json").write_text("{}")
    check_folder(folder)  # of an older run: nothing is listed
    list_folder(folder)
    check_folder(folder)
    (folder / "config.json").write_text('{"rms_norm_eps": 1e-05}\n')
    with pytest.raises(CorruptCheckpoint, match=r"model/config\.json, line 1 is not"):
        check_folder(folder)
    (folder / "config.json").write_text('{"rms_norm_eps": 1e-06}\n')
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"tokenizer\.json is missing"):
        check_folder(folder)
    with pytest.raises(StorageError, match="No such file"):
        read_listed(folder / "tokenizer.json")
