"""Spreadsheets as tables and captions: real .xlsx files, whole, odd and broken."""

import re
import tracemalloc
import warnings
import zipfile
from datetime import date

import media_files
import pytest
from openpyxl import Workbook

from migr.clips.manifest import read_clips
from migr.errors import InputError
from migr.files.records import read_jsonl, write_jsonl
from migr.sources import spreadsheet
from migr.sources.reasoning import read_reasoning
from migr.sources.spreadsheet import spreadsheet_rows


def save(path, **sheets):
    """An .xlsx file with these sheets, each a list of rows."""
    book = Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


CAPTIONS = [["clip", "中文", "English"], ["00025.mp4", "他笑了。", "A man smiles."], [26, None, "She weeps.\nHe nods."]]


def test_captions_are_read_from_a_sheet_with_numbers_as_clip_ids(tmp_path):
    file = save(tmp_path / "descriptive_text.xlsx", Sheet1=CAPTIONS)
    assert read_reasoning(file, "captions") == [
        {"clip_id": "00025.mp4", "segments": {"video": "A man smiles."}, "by": "caption"},
        {"clip_id": "26", "segments": {"video": "She weeps.\nHe nods."}, "by": "caption"},
    ]
    assert read_reasoning(file) == [  # never guessed to be captions
        {"clip_id": "00025.mp4", "text": "A man smiles."},
        {"clip_id": "26", "text": "She weeps.\nHe nods."},
    ]


def test_captions_of_mafw_become_targets(stage, tmp_path):
    for name in ("00025", "00026"):
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    rows = [
        {"clip_id": n, "path": f"{n}.mp4", "label": label, "split": "train"}
        for n, label in (("00025", "happiness"), ("00026", "sadness"))
    ]
    write_jsonl(tmp_path / "clips.jsonl", rows)
    given = {
        "clips": tmp_path / "clips.jsonl",
        "labels": "mafw",
        "order": "video-first",
        "reasoning_format": "captions",
    }
    sheet = save(tmp_path / "t.xlsx", Sheet1=[*CAPTIONS, ["00099.mp4", "", "Of another split."]])
    stage("targets", **given, reasoning=sheet, out=tmp_path / "targets.jsonl")
    assert [row["target"] for row in read_jsonl(tmp_path / "targets.jsonl")] == [
        "<think><video>A man smiles.</video></think><answer>happiness</answer>",
        "<think><video>She weeps.\nHe nods.</video></think><answer>sadness</answer>",
    ]


def test_a_table_of_clips_is_read_from_a_sheet(stage, tmp_path):
    for number in (1, 2):
        media_files.clip(tmp_path / f"{number}.mp4", seconds=1.0, seed=number)
    rows = [["path", "label", "clip_id", "speaker"], ["1.mp4", "Joyful", 7, None], ["2.mp4", None, None, 3.5]]
    table = save(tmp_path / "mine.xlsx", clips=rows, notes=[["of", "March"]])
    stage("data", source="table", table=table, out=tmp_path / "out")
    found = read_clips(tmp_path / "out" / "clips.jsonl")
    assert [(c.clip_id, c.label, c.extra["speaker"]) for c in found] == [("7", "happy", ""), ("2", None, "3.5")]
    save(table, clips=[rows[0], ["1.mp4", "smug"]])
    with pytest.raises(InputError, match=r"mine\.xlsx:2: label 'smug' is not one of"):
        stage("data", source="table", table=table, out=tmp_path / "other")


def rows_of(path, *columns):
    return spreadsheet_rows(path, lambda names: {*columns} <= {*names}, f"the columns {', '.join(columns)}")


def test_every_kind_of_cell_becomes_the_text_that_a_csv_would_have(tmp_path):
    cells = [25, 25.0, 0.5, True, date(2024, 3, 1), " x ", "=1+1", "a_x000D_\nb"]
    names = list("abcdefgh")
    file = save(tmp_path / "t.xlsx", t=[["The clips"], [], names, [], cells, [None, "", " "]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((number, row),) = rows_of(file, "a", "h")
    assert number == 5  # as the sheet counts; blank rows are none
    values = ["25", "25", "0.5", "True", "2024-03-01T00:00:00", "x", "", "a\nb"]  # a formula is never evaluated
    assert row == dict(zip(names, values, strict=True))


def test_the_sheet_is_the_first_or_the_only_one_with_the_columns(tmp_path):
    good, other = [["id", "text"], [1, "He nods."]], [["of"], ["March"]]
    assert len(rows_of(save(tmp_path / "a.xlsx", a=good, b=[*good, [2, "x"]]), "id", "text")) == 1
    assert len(rows_of(save(tmp_path / "b.xlsx", a=other, empty=[], b=good), "id", "text")) == 1
    with pytest.raises(InputError, match=r"c\.xlsx: the sheets 'b', 'c' have the columns id, text: leave one"):
        rows_of(save(tmp_path / "c.xlsx", a=other, b=good, c=good), "id", "text")


def unpacks_to(path, size):
    """A whole .xlsx with a part that is `size` zeros, a thousandth of it on disk."""
    save(path, a=CAPTIONS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/media/picture.bin", bytes(size))
    return path


def with_sheet(path, xml):
    """An .xlsx whose only sheet is this XML."""
    whole = save(path.with_name("whole.xlsx"), a=CAPTIONS)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, xml if name == "xl/worksheets/sheet1.xml" else source.read(name))
    return path


SPACE = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
FAR = f'<worksheet {SPACE}><sheetData><row r="999999999999"><c t="str"><v>x</v></c></row></sheetData></worksheet>'
ENTITY = f'<!DOCTYPE x [<!ENTITY a "aaaa">]><worksheet {SPACE}><sheetData>&a;</sheetData></worksheet>'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda file: file.write_text("clip,english\n"),
            "cannot be read as .xlsx (File is not a zip file); an old .xls",
        ),
        (lambda file: file.write_bytes(b""), "cannot be read as .xlsx (File is not a zip file)"),
        (lambda file: zipfile.ZipFile(file, "w").close(), "cannot be read as .xlsx"),
        (lambda file: unpacks_to(file, spreadsheet.MAX_BYTES), "unpacks to 64 MiB, more than 64"),
        (lambda file: with_sheet(file, FAR), "sheet 'a' goes on below row 200,000"),
        (lambda file: with_sheet(file, ENTITY), "cannot be read as .xlsx (EntitiesForbidden"),
        (lambda file: with_sheet(file, "<worksheet"), "cannot be read as .xlsx"),
        (lambda file: save(file, a=[["who", "note"], [25, "x"]]), "no sheet has a column for the clip (clip_id, name"),
        (lambda file: save(file, a=[["who", "note"], [25, "x"]]), "first rows: 'a': who, note"),
        (lambda file: save(file, a=[["clip\nid", "中文"]]), "first rows: 'a': clip id, 中文"),
        (lambda file: save(file, a=[]), "first rows: 'a': empty"),
        (lambda file: save(file, a=[["clip", "english"]]), "no reasoning in it"),
        (lambda file: save(file, a=[["clip", "text", "Text"], [1, "x", "y"]]), ":1: two columns are named 'text'"),
        (lambda file: save(file, a=[*CAPTIONS, [27, None, "#N/A"]]), ":4: cell C4 (english) holds the error #N/A"),
        (lambda file: save(file, a=[*CAPTIONS, [27, "空"]]), ":4: no column for a caption"),
        (lambda file: None, "no such file"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_file_and_place(tmp_path, make, message):
    file = tmp_path / "t.xlsx"
    make(file)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_reasoning(file, "captions")
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_bomb_is_refused_by_its_directory_and_a_lie_there_does_not_unpack(tmp_path):
    file = unpacks_to(tmp_path / "bomb.xlsx", 1 << 29)
    assert file.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="unpacks to 512 MiB"):
        read_reasoning(file, "captions")
    lying = with_sheet(tmp_path / "lying.xlsx", FAR.encode() + b" " * 5000)
    size = len(FAR.encode() + b" " * 5000).to_bytes(4, "little")
    content = lying.read_bytes()
    at = content.rindex(b"xl/worksheets/sheet1.xml") - 46  # its entry in the directory
    lying.write_bytes(content[:at] + content[at:].replace(size, (90).to_bytes(4, "little")))
    with pytest.raises(InputError, match=r"cannot be read as \.xlsx"):
        read_reasoning(lying, "captions")


SHARED = (
    b'<Override PartName="/xl/sharedStrings.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    b'spreadsheetml.sharedStrings+xml"/>'
)


def shared(path, text, cells):
    """An .xlsx with one shared text, to which this many cells refer."""
    row = '<row r="{}">' + '<c t="s"><v>0</v></c>' * 100 + "</row>"
    rows = "".join(row.format(number) for number in range(1, cells // 100 + 1))
    whole = save(path.with_name("whole.xlsx"), a=CAPTIONS)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            part = source.read(name)
            if name == "xl/worksheets/sheet1.xml":
                part = f"<worksheet {SPACE}><sheetData>{rows}</sheetData></worksheet>"
            elif name == "[Content_Types].xml":
                part = part.replace(b"</Types>", SHARED + b"</Types>")
            archive.writestr(name, part)
        archive.writestr("xl/sharedStrings.xml", f"<sst {SPACE}><si><t>{text}</t></si></sst>")
    return path


@pytest.mark.parametrize(
    ("length", "cells", "message"),
    [
        (20_000_000, 200, "sheet 'a', cell A1: more than 100,000 characters"),
        (90_000, 2000, "sheet 'a', row 8: more than 2,000,000 cells or 64 million characters"),
        (2, 50_000, "sheet 'a', row 401: more than 40,000 cells"),
    ],
)
def test_a_few_bytes_do_not_become_gigabytes(length, cells, message, tmp_path, monkeypatch):
    if length == 2:
        monkeypatch.setattr(spreadsheet, "MAX_CELLS", 40_000)  # two million take half a minute
    file = shared(tmp_path / "t.xlsx", "x" * (length - 1) + " ", cells)
    assert file.stat().st_size < 1 << 18
    tracemalloc.start()
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_reasoning(file, "captions")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 256 << 20 and len(str(error.value)) < 500


def test_a_sheet_cut_in_half_is_refused(tmp_path):
    whole = save(tmp_path / "whole.xlsx", a=CAPTIONS)
    media_files.half(tmp_path / "half.xlsx", whole)
    with pytest.raises(InputError, match=r"half\.xlsx: cannot be read as \.xlsx"):
        read_reasoning(tmp_path / "half.xlsx", "captions")
