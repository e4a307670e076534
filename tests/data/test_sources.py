"""Rows are read whole, and each defect is named with its file, line and field."""

import copy
import gzip
import json
import pathlib

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from reading import load_prompts

from tpmm_jax.data import _text_files as text_files
from tpmm_jax.data.problems import Place, Problems, place_of
from tpmm_jax.data.sources import read_rows
from tpmm_jax.errors import BadInput

ROWS = [{"prompt": f"p{n}", "n": n} for n in range(3)]
GOOD = b'{"prompt": "ok"}\n'

# Kind of defect: the bytes of the bad line, and what the message says.
BAD_LINES = {
    "utf8": (b'{"prompt": "caf\xe9"}\n', "not UTF-8: byte 0xe9"),
    "not json": (b"prompt: hello\n", "not JSON"),
    "nan": (b'{"prompt": "a", "score": NaN}\n', "NaN is not JSON"),
    "infinite": (b'{"prompt": "a", "score": 1e999}\n', "does not fit a float"),
    "huge int": (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}\n", "64 bits"),
    "list": (b'["a"]\n', "is a list; wanted an object"),
    "text": (b'"a"\n', "is a text; wanted an object"),
    "null": (b"null\n", "is null; wanted an object"),
    "twice": (b'{"prompt": "a", "prompt": "b"}\n', "'prompt' appears twice"),
    "nul byte": (b'{"prompt": "a\x00"}\n', "NUL byte"),
    "nul escape": (b'{"prompt": "a\\u0000"}\n', "'prompt' holds a NUL"),
    "surrogate": (b'{"prompt": ["a", "\\ud83d"]}\n', "'prompt[1]' holds half"),
    "deep": (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}\n", "deeper than 32"),
    "very deep": (b"[" * 500_000 + b"\n", "deeper than 32"),
    "long": (b'{"prompt": "' + b"a" * (1 << 20) + b'"}\n', "longer than 1 MiB"),
    "comma": (b'{"prompt": "a",}\n', "not JSON"),
    "cut": (b'{"prompt": "a\n', "not JSON"),
    "two": (b'{"prompt": "a"} {"prompt": "b"}\n', "Extra data"),
}


def _write(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def _error(source: str, **options) -> str:
    with pytest.raises(BadInput) as error:
        read_rows(source, **options)
    return str(error.value)


@pytest.mark.parametrize("kind", BAD_LINES)
def test_each_kind_of_bad_line_is_named_with_its_line(tmp_path, kind):
    line, text = BAD_LINES[kind]
    source = _write(tmp_path / "a.jsonl", GOOD * 4 + line + GOOD)
    message = _error(source)
    assert f"{source}:5: " in message and text in message
    assert "1 problem in 1 row" in message


def test_all_bad_lines_are_listed_at_once_and_long_lists_are_cut(tmp_path):
    lines = b"".join(GOOD + line for line, _ in BAD_LINES.values()) + GOOD
    message = _error(_write(tmp_path / "a.jsonl", lines))
    assert all(f":{2 * n}: " in message for n in range(1, len(BAD_LINES) + 1))
    message = _error(_write(tmp_path / "b.jsonl", b"x\n" * 50))
    assert "50 problems" in message and "and 30 more" in message
    assert message.count("b.jsonl:") == 1 + 20


def test_good_lines_raise_no_false_alarm(tmp_path):
    rows = [
        {"prompt": 'text with [brackets], {"braces"} \\ and "quotes"' * 3, "n": n}
        for n in range(2000)
    ] + [{"prompt": "\U0001f600 é 中 \u2028", "x": 1.5e300, "id": 2**64 - 1, "e": None}]
    text = "".join(
        json.dumps(r, ensure_ascii=n % 2 == 0) + "\n" for n, r in enumerate(rows)
    )
    plain = read_rows(_write(tmp_path / "a.jsonl", text.encode()))
    assert [r.data for r in plain] == rows
    assert plain[7].origin == f"{tmp_path}/a.jsonl:8"
    crlf = read_rows(_write(tmp_path / "b.jsonl", text.replace("\n", "\r\n").encode()))
    assert [r.data for r in crlf] == rows
    blank_end = read_rows(_write(tmp_path / "c.jsonl", text.encode() + b"\n\n"))
    assert len(blank_end) == len(rows)


def test_byte_order_marks_are_no_part_of_a_row(tmp_path):
    bom = b"\xef\xbb\xbf"
    # Files that were put together have one in their middle.
    files = {"a.jsonl": 2, "a.txt": 2, "a.json": 1, "a.csv": 1}
    for name, parts in files.items():
        lines = b"prompt\nok\n" if name == "a.csv" else GOOD
        rows = read_rows(_write(tmp_path / name, (bom + lines) * parts))
        wanted = GOOD.decode().strip() if name == "a.txt" else "ok"
        assert [row.data["prompt"] for row in rows] == [wanted] * parts, name
    message = _error(_write(tmp_path / "b.jsonl", GOOD.decode().encode("utf-16")))
    assert "UTF-16" in message


@pytest.mark.parametrize("form", ["list", "data", "rows", "lines", "one line"])
def test_json_documents(tmp_path, form):
    value = {"meta": {"n": [1, {"a": "]"}]}, form: ROWS} if form != "list" else ROWS
    text = json.dumps(value, indent=1)
    if form == "lines":
        text = "\n".join(json.dumps(row) for row in ROWS)
    elif form == "one line":
        text = json.dumps(ROWS)
    rows = read_rows(_write(tmp_path / "a.json", text.encode()))
    assert [r.data for r in rows] == ROWS
    numbers = [int(r.origin.rsplit(":", 1)[1].split()[0]) for r in rows]
    assert len({r.origin for r in rows}) == 3
    lines = text.splitlines()
    if form in ("list", "data", "rows"):
        assert [
            "{" in lines[n - 1] and f"p{i}" in lines[n] for i, n in enumerate(numbers)
        ] == [True] * 3
    else:
        assert numbers == ([1, 1, 1] if form == "one line" else [1, 2, 3])


@pytest.mark.parametrize(
    "text, wanted",
    [
        ('[\n{"a": 1},\n{"a": 2\n]', "a.json:4: not JSON"),
        ('[\n{"a": 1},\n{"a": NaN},\n3]', "a.json:3: field 'a': NaN"),
        ('[\n{"a": 1},\n{"a": NaN},\n3]', "a.json:4: the row is a number"),
        ('[\n{"a": 1,\n"a": 2}]', "a.json:2: field 'a' appears twice"),
        ('{"train": []}', "an object with the keys train"),
        ('{"data": [], "n": 1, "rows": []}', "two lists of rows, 'data' and 'rows'"),
        ('{"data": [{"a": 1}], "data": [{"a": 2}]}', "two lists of rows"),
        ('{"data": [{"a": 1}], "data": 3}', "field 'data' appears twice"),
        ('{"rows": 3, "rows": [{"a": 1}]}', "field 'rows' appears twice"),
        ('{"version": 1, "train": [{"a": 1}]}', "an object with the keys version"),
        ("3", "wanted a list of objects"),
        ("[" * 100_000, "deeper"),
        ("", "the file is empty"),
        ("[]", "there are no rows"),
        ('[\n{"a": "\x00"}]', "a.json:2: holds a NUL"),
    ],
)
def test_json_documents_name_their_defects(tmp_path, text, wanted):
    assert wanted in _error(_write(tmp_path / "a.json", text.encode()))


def test_a_repeated_list_of_rows_is_no_bad_row(tmp_path):
    source = _write(tmp_path / "a.json", b'{"data": [{"a": 1}], "data": 3}')
    problems = Problems(source, on_bad_rows="drop")
    assert read_rows(source, problems=problems) == [] and problems.refused


def test_gzip_and_its_damage(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    packed = gzip.compress(lines * 1000, mtime=0)
    source = _write(tmp_path / "a.jsonl.gz", packed)
    assert len(read_rows(source)) == 3000
    document = gzip.compress(json.dumps({"rows": ROWS}).encode())
    assert len(read_rows(_write(tmp_path / "a.json.gz", document))) == 3
    for name, content in (("c", packed[: len(packed) // 2]), ("d", b"not gzip")):
        message = _error(_write(tmp_path / f"{name}.jsonl.gz", content))
        assert "cut off or damaged" in message


def test_text_files_hold_one_prompt_a_line(tmp_path):
    source = _write(tmp_path / "p.txt", "first \nsecond é\r\n\n".encode())
    assert [r.data["prompt"] for r in read_rows(source)] == ["first ", "second é"]


def test_parquet_saved_folders_and_splits(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(str(tmp_path / "a.parquet"))
    rows = read_rows(str(tmp_path / "a.parquet"), columns=("prompt", "n"))
    assert [r.data for r in rows] == ROWS and rows[2].origin.endswith("a.parquet row 2")
    assert "not a readable parquet" in _error(_write(tmp_path / "b.parquet", b"PAR1"))
    table.save_to_disk(str(tmp_path / "one"))
    rows = read_rows(str(tmp_path / "one"), columns=("prompt", "n"))
    assert [r.data for r in rows] == ROWS
    assert "'test'" in _error(str(tmp_path / "one"), split="test")
    both = datasets.DatasetDict(train=table, test=table.select([1]))
    both.save_to_disk(str(tmp_path / "both"))
    rows = read_rows(str(tmp_path / "both"), split="test", columns=("n",))
    assert [r.data for r in rows] == [{"prompt": None, "n": 1}]
    assert "it has test, train" in _error(str(tmp_path / "both"), split="validation")
    assert "a.parquet" in _error(str(tmp_path))


def test_missing_files_name_the_nearest(tmp_path):
    _write(tmp_path / "train_pairs.jsonl", GOOD)
    assert "train_pairs.jsonl" in _error(str(tmp_path / "train_pair.jsonl"))
    assert "train_pairs.jsonl" in _error(str(tmp_path / "zzz"))
    assert f"{tmp_path} does" in _error(str(tmp_path / "no" / "such" / "a.jsonl"))
    assert "unknown kind" in _error(_write(tmp_path / "a.xlsx", b"x"))
    source = str(tmp_path / "train_pairs.jsonl")
    assert "one split" in _error(source, split="test")


def test_hub_names_go_to_datasets(monkeypatch):
    calls = []

    def load_dataset(**arguments):
        calls.append(arguments)
        if arguments["split"] == "bad":
            raise ValueError("Unknown split 'bad'. Should be one of ['train'].")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows("org/name:sub@abc123", split="test")
    wanted = {"path": "org/name", "name": "sub", "revision": "abc123"}
    assert calls[0] == wanted | {"split": "test"}
    assert rows[1].origin == "org/name:sub@abc123 test row 1"
    assert "Unknown split" in _error("org/name", split="bad")


def test_callers_gather_problems_and_leave_rows_out(tmp_path):
    source = _write(tmp_path / "a.jsonl", GOOD + b"x\n" + GOOD + b"y\n")
    problems = Problems(source, on_bad_rows="drop")
    assert len(read_rows(source, problems=problems)) == 2
    places = [defect.origin for defect in problems.found]
    assert [(place.file, place.line) for place in places] == [(source, 2), (source, 4)]
    assert problems.settle() == 2
    problems = Problems(source)
    read_rows(source, problems=problems)
    with pytest.raises(BadInput, match="2 problems in 2 rows; nothing was used"):
        problems.settle()
    packed = _write(tmp_path / "b.jsonl.gz", gzip.compress(GOOD * 999)[:-9])
    problems = Problems(packed, on_bad_rows="drop")
    read_rows(packed, problems=problems)
    assert problems.refused and not problems.bad_rows()
    with pytest.raises(BadInput, match=r"1 problem; nothing was used[^?]*cut off"):
        problems.settle()


def _place(origin: str) -> tuple:
    place = place_of(origin)
    return place.file, place.line, place.row


def test_rows_carry_their_place(tmp_path, monkeypatch):
    text = "[\n" + ", ".join(json.dumps(row) for row in ROWS) + "]"
    name = _write(tmp_path / "a b:1.json", text.encode())
    places = [_place(row.origin) for row in read_rows(name)]
    assert places == [(name, 2, number) for number in range(3)]
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    row = read_rows("saved")[2]
    assert row.origin == "saved train row 2" and _place(row.origin) == (
        "saved",
        None,
        2,
    )
    assert _place("org/name:2024") == ("org/name:2024", None, None)
    assert copy.deepcopy(row).origin.file == "saved"
    assert isinstance(row.origin, Place)


@pytest.mark.parametrize(
    "line, field",
    [
        ('{"a": 1, "chosen": [{"role": "user", "role": "user"}]}', "chosen"),
        ('{"a": 1, "a": [NaN]}', "a"),
        ('{"a": [1, {"b": NaN}]}', "a"),
        ('{"a": 1, "s": -Infinity}', "s"),
        ('{"a": 1, "s": 1e999}', "s"),
        ('{"a": {"n": ' + "9" * 9000 + "}}", "a"),
        ('{"a": 18446744073709551616}', "a"),
        ("NaN", None),
        ("[NaN]", None),
    ],
)
def test_a_value_that_is_no_json_is_named_with_its_column(tmp_path, line, field):
    for suffix, text in (("jsonl", line), ("json", f"[{line}]")):
        source = _write(tmp_path / f"a.{suffix}", text.encode())
        problems = Problems(source)
        read_rows(source, problems=problems)
        assert [(d.field, d.origin.line) for d in problems.found] == [(field, 1)]
        assert not problems.found[0].fatal


def test_a_json_file_of_one_row_or_of_lines_with_a_broken_first(tmp_path):
    for row in ({"prompt": "a"}, {"q": "a", "n": 1}, {"chosen": [{"role": "user"}]}):
        for indent in (None, 1):
            source = _write(
                tmp_path / "a.json", json.dumps(row, indent=indent).encode()
            )
            assert [r.data for r in read_rows(source)] == [row]
    source = _write(tmp_path / "b.json", b'{"prompt": "a", b\n' + GOOD + b"3\n" + GOOD)
    problems = Problems(source)
    assert len(read_rows(source, problems=problems)) == 2
    assert [d.origin.line for d in problems.found] == [1, 3]
    broken = b'{"data": [\n{"prompt": "a"},\n{"prompt": "b"}\n'
    assert "b.json:4: not JSON" in _error(_write(tmp_path / "b.json", broken))


def test_a_document_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 100)
    source = _write(tmp_path / "a.json", json.dumps(ROWS * 9).encode())
    assert "convert it to JSON Lines" in _error(source)


def _parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def _not_utf8():
    """Texts of which the second one's bytes are not UTF-8."""
    offsets = pyarrow.array([0, 2, 4, 6], pyarrow.int32()).buffers()[1]
    data = pyarrow.py_buffer(b"ok\xff\xfeok")
    return pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, data])


def test_columns_that_nobody_reads_are_not_converted(tmp_path):
    micro = pyarrow.timestamp("us", tz="Foo/Bar")
    source = _parquet(
        tmp_path / "a.parquet",
        prompt=["a"],
        far=pyarrow.array([2**62], pyarrow.timestamp("us")),
        zone=pyarrow.array([1], micro),
        day=pyarrow.array([2**31 - 1], pyarrow.date32()),
        long=pyarrow.array([2**60], pyarrow.duration("s")),
    )
    assert [p.content for p in load_prompts(source)] == ["a"]
    unread = dict.fromkeys(("prompt", "far", "zone", "day", "long"))
    assert [r.data for r in read_rows(source)] == [unread]
    assert "a.parquet row 0: field 'day' cannot be" in _error(source, columns=["day"])


def test_values_that_cannot_be_converted_name_row_and_field(tmp_path):
    source = _parquet(tmp_path / "a.parquet", prompt=_not_utf8(), n=[0, 1, 2])
    problems = Problems(source, on_bad_rows="drop")
    rows = read_rows(source, columns=("prompt",), problems=problems)
    assert [r.origin[-5:] for r in rows] == ["row 0", "row 2"]
    ((origin, field, reason, _),) = problems.found
    assert origin == f"{source} row 1" and field == "prompt"
    assert "'utf-8' codec can't decode byte 0xff" in reason
    table = pyarrow.table([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert "'prompt' is there twice" in _error(
        str(tmp_path / "b.parquet"), columns=("prompt",)
    )


def test_saved_values_that_cannot_be_converted_name_row_and_field(tmp_path):
    days = pyarrow.array([0, 2**31 - 1, 0], pyarrow.date32())
    table = pyarrow.table({"prompt": ["a", "b", "c"], "day": days})
    saved = str(tmp_path / "saved")
    datasets.Dataset(table).save_to_disk(saved)
    assert len(load_prompts(saved)) == 3
    assert "train row 1: field 'day' cannot be read" in _error(saved, columns=["day"])


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 300 + ".jsonl", "~no-such-user/x.jsonl"]
)
def test_names_that_no_file_can_have(name):
    assert f"{name}: cannot be read" in _error(name)


@pytest.mark.parametrize(
    "name, content",
    [
        ("state.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", None),
        ("dataset_info.json", b"[]"),
        ("dataset_info.json", None),
        ("data-00000-of-00001.arrow", None),
        ("data-00000-of-00001.arrow", b""),
        ("data-00000-of-00001.arrow", "half"),
    ],
)
def test_damaged_saved_datasets_are_called_so(tmp_path, name, content):
    datasets.Dataset.from_list(ROWS * 50).save_to_disk(str(tmp_path / "saved"))
    path = tmp_path / "saved" / name
    if content == "half":
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    message = _error(str(tmp_path / "saved"))
    assert "a saved dataset that is incomplete or damaged" in message


@pytest.mark.parametrize(
    "held, asked, works",
    [
        ("train[:3]", "train", True),
        ("test[:3]", "test", True),
        ("test", "train", True),
        ("train[:1]+train[2:]", "train", True),
        ("train[:3]", "test", False),
        ("train+test", "test", False),
    ],
)
def test_a_saved_dataset_of_one_split_is_that_split(tmp_path, held, asked, works):
    dataset = datasets.Dataset.from_list(ROWS, split=datasets.NamedSplit(held))
    dataset.save_to_disk(str(tmp_path))
    if works:
        rows = read_rows(str(tmp_path), split=asked)
        assert rows[1].origin == f"{tmp_path} {held} row 1"
    else:
        wanted = f"the one split {held!r}, but {asked!r} was asked for"
        assert wanted in _error(str(tmp_path), split=asked)
