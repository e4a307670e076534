"""Files as people have them: CSV, TSV, compressed, in shards, with blank lines."""

import gzip
import json

import datasets
import pyarrow
import pytest
from reading import load_pairs, load_prompts

from tpmm_jax.data._text_files import MAX_ROW_BYTES
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.sources import read_rows
from tpmm_jax.errors import BadInput

ROW = {"prompt": "the sky is", "chosen": " blue", "rejected": " black"}
LINE = json.dumps(ROW).encode() + b"\n"
HEADER = "prompt,chosen,rejected\n"
# As pandas writes them: cells with quotes, separators and line breaks are quoted.
GOLDEN = (
    ",prompt,chosen,rejected,score\n"
    '0,"What, now?\nTell me.","He said ""yes"".",no,4.5\n'
    "\n"
    "1,NA,null,1e3,\n"
    "2,天 🙂 , two  spaces ,\ttab,-1\n"
    ",,,,\n"
    '3,"a\r\nb","c,d",""" ",0\n'
)
READ = [
    ("What, now?\nTell me.", 'He said "yes".', "no"),
    ("NA", "null", "1e3"),
    ("天 🙂 ", " two  spaces ", "\ttab"),
    ("a\r\nb", "c,d", '" '),
]
# The lines on which these rows begin.
LINES = [2, 5, 6, 8]


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


@pytest.fixture
def save(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def _error(source, **options):
    with pytest.raises(BadInput) as error:
        load_pairs(source, **options)
    return str(error.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["", "gz", "zst"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_csv_cells_are_texts_to_the_letter(save, pack, bom):
    suffix = {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[pack]
    source = save("p.csv" + suffix, pack(bom + GOLDEN.encode()))
    found = load_pairs(source)
    assert [(p.prompt, p.chosen, p.rejected) for p in found.pairs] == READ
    assert [p.origin for p in found.pairs] == [f"{source}:{n}" for n in LINES]
    # The empty line, and the row of empty cells that spreadsheets leave behind.
    assert found.counts["blank_lines"] == 2 and found.counts["rows_read"] == 4
    row = read_rows(source)[0]
    assert row.data["column 1"] == "0" and row.data["score"] == "4.5"
    assert [p.content for p in load_prompts(source)] == [row[0] for row in READ]


def test_tsv_and_the_line_ends_of_other_systems(save):
    tabs = "prompt\tchosen\trejected\n'a', b\t\"c\td\"\te\n"
    pair = load_pairs(save("p.tsv", tabs)).pairs[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ("'a', b", "c\td", "e")
    for end in ("\r\n", "\r"):
        text = (HEADER + "a,b,c\nd,e,f\n").replace("\n", end)
        assert [p.prompt for p in load_pairs(save("q.csv", text)).pairs] == ["a", "d"]


def test_a_tsv_written_without_quoting_is_not_read_with_it(save):
    tabs = HEADER.replace(",", "\t")
    swallowed = tabs + 'a\t"Yes\tb\nc\tno"\td\ne\tf\tg\n'
    assert "every line holds 3 cells if quotes" in _error(save("a.tsv", swallowed))
    quoted = tabs + 'a\t"Yes\tb\nno"\td\ne\tf\tg\n'
    assert load_pairs(save("b.tsv", quoted)).pairs[0].chosen == "Yes\tb\nno"


@pytest.mark.parametrize(
    "content, wanted",
    [
        ("a,b,c\n,b,c\n", ":3: field 'prompt' is empty"),
        ("a,b,c\na,b\n", ":3: the row has 2 cells, the header 3"),
        ("a,b,c\na,b,c,d\n", ":3: the row has 4 cells, the header 3"),
        ('a,b,c\n"a" x,b,c\n', ":3: not CSV: ',' expected after '\"'"),
        ("a,b,c\n" + HEADER, ":3: the row repeats the header"),
        ("a,b,c\n\ufeff" + HEADER, ":3: the row repeats the header"),
        (f"a,b,c\na,{'x' * MAX_ROW_BYTES},c\n", ":3: the row is longer than 1 MiB"),
        (f"a,b,c\na,{'x' * MAX_ROW_BYTES}x,c\n", ":3: not CSV: field larger"),
    ],
)
def test_a_bad_csv_row_is_named_and_the_others_are_read(save, content, wanted):
    source = save("p.csv", HEADER + content + '"l\nm",n,o\n')
    message = _error(source)
    assert wanted in message and "1 problem in 1 row" in message
    pairs = load_pairs(source, on_bad_rows="drop").pairs
    assert [p.origin[-2:] for p in pairs] == [":2", ":4"]


@pytest.mark.parametrize(
    "content, wanted",
    [
        (
            HEADER + 'a,"b\nb",c\n"d,e,f\ng,h,i\n',
            ":4: not CSV: a quoted cell",
        ),
        (HEADER + 'a,"b\nb"x,c\n', ":2: not CSV: ',' expected"),
        (HEADER.encode() + b"a,b,caf\xe9\n", ":2: not UTF-8: byte 0xe9"),
        (HEADER.encode() + b"a,b,c\0\n", ":2: holds a NUL"),
        ("prompt,chosen,chosen\na,b,c\n", ":1: the column 'chosen' is there twice"),
        ("prompt;chosen;rejected\na;b;c\n", ":1: the header is one column"),
        ("prompt\tchosen\trejected\na\tb\tc\n", "as if tabs separated"),
        ((HEADER + "a,b,c\n").encode("utf-16"), "UTF-16"),
        (" \n", "the file is empty"),
    ],
)
def test_a_csv_file_that_cannot_be_trusted_is_refused_whole(save, content, wanted):
    source = save("p.csv", content)
    for on_bad_rows in ("refuse", "drop"):
        assert wanted in _error(source, on_bad_rows=on_bad_rows)


def test_a_csv_file_without_rows_or_columns(save):
    assert "there are no rows" in _error(save("a.csv", HEADER))
    message = _error(save("b.csv", "question,better,worse\na,b,c\n"))
    assert "(columns: better, question, worse)" in message
    fields = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert load_pairs(save("b.csv", "question,better,worse\na,b,c\n"), fields=fields)


@pytest.mark.parametrize("suffix, pack", [("gz", gzip.compress), ("zst", zstd)])
def test_compressed_files_and_their_damage(save, suffix, pack):
    packed = pack(LINE * 999)
    assert len(read_rows(save(f"a.jsonl.{suffix}", packed))) == 999
    # Several streams behind each other are one file.
    assert len(read_rows(save(f"b.jsonl.{suffix}", packed * 2))) == 1998
    document = pack(json.dumps([ROW]).encode())
    assert len(read_rows(save(f"c.json.{suffix}", document))) == 1
    for n, damaged in enumerate((packed[:-9], packed + packed[:30], b"not packed")):
        for kind in ("jsonl", "csv"):
            message = _error(save(f"{n}.{kind}.{suffix}", damaged), on_bad_rows="drop")
            assert "the compressed file is cut off or damaged" in message


def test_blank_lines_are_counted_but_for_those_at_the_end(save):
    source = save("a.jsonl", b"\n" + LINE + b" \t\n\r\n" + LINE + b"\n\n")
    found = load_pairs(source)
    assert [p.origin[-2:] for p in found.pairs] == [":2", ":5"]
    assert found.counts["blank_lines"] == 3 and found.counts["rows_read"] == 2
    problems = Problems(source)
    rows = read_rows(save("a.txt", "a\n\nb\n\n"), problems=problems)
    assert [row.data["prompt"] for row in rows] == ["a", "b"]
    assert problems.counts["blank_lines"] == 1 and not problems.found


def test_a_pattern_is_one_source(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("d/p-2.jsonl", LINE * 2)
    save("d/p-1.csv", HEADER + "a,b,c\n")
    save("d/p-3.jsonl.zst", zstd(LINE + LINE[:-9] + b"\n"))
    save("d/other.md", "# no data")
    datasets.Dataset.from_list([ROW]).save_to_disk("d/p-saved")
    found = load_pairs("d/p-*", on_bad_rows="drop")
    places = ["d/p-1.csv:2", "d/p-2.jsonl:1", "d/p-2.jsonl:2", "d/p-3.jsonl.zst:1"]
    assert [p.origin for p in found.pairs] == [*places, "d/p-saved train row 0"]
    message = _error("d/p-*")
    assert "d/p-*: 1 problem in 1 row" in message and "d/p-3.jsonl.zst:2: " in message
    assert len(load_prompts("**/p-[12].*")) == 3
    assert "d/other.md: unknown kind of file" in _error("d/*")
    assert "no file matches this pattern; in d there is p-1.csv" in _error("d/x*.jsonl")
    assert "the folder e does not exist" in _error("e/*.jsonl")
    save("d/p-4.jsonl", b"")
    assert "d/p-4.jsonl: there are no rows in it" in _error("d/p-*.jsonl")
    # A name that is there is no pattern.
    assert len(load_pairs(save("x[1].jsonl", LINE)).pairs) == 1
