"""Tables as offices write them: one reader for every command."""

import os
import unicodedata

import pytest

from migr.errors import InputError
from migr.sources import dfew, table
from migr.sources.reasoning import match, read_reasoning
from migr.sources.tables import check_name, names_of, read_table
from migr.text.labels import label_set

DFEW = label_set("dfew")


def rows_of(path, *columns):
    return list(read_table(path, lambda names: {*columns} <= {*names}, f"the columns {', '.join(columns)}"))


@pytest.mark.parametrize(
    "content",
    [
        b"path,label\na.mp4,sad\n",
        b"path;label\r\na.mp4;sad\r\n",
        b"\xef\xbb\xbfPath;LABEL;\r\na.mp4;sad;\r\n;;\r\n",  # Excel: a mark, capitals, a blank column, a blank row
        b"sep=;\r\nPath;Label\r\na.mp4;sad\r\n",
        b"My clips, by Ann\n\n path , Label \na.mp4,sad\n",  # a title above the header
        "path\tlabel\na.mp4\tsad\n".encode("utf-16"),  # Excel: 'Unicode text'
        b"path|label\na.mp4|sad\n",
        b"path,label\ra.mp4,sad\r",  # an old Mac
        b'"path","label"\n"a.mp4","sad"\n',
    ],
)
def test_a_table_is_read_whatever_program_wrote_it(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    ((_, row),) = rows_of(tmp_path / "t.csv", "path", "label")
    assert (row["path"], row["label"]) == ("a.mp4", "sad") and set(row) == {"path", "label"}


def test_lines_are_counted_as_an_editor_does(tmp_path):
    (tmp_path / "t.csv").write_text('title\npath,label,note\na,sad,"two\nlines"\n\nb,smug,x\n')
    assert [number for number, _ in rows_of(tmp_path / "t.csv", "path", "label")] == [4, 6]
    (tmp_path / "t.csv").write_text("path,label,note\na,#NAME?,x\n")
    with pytest.raises(InputError, match=r"t\.csv:2: label holds Excel's error #NAME\?"):
        rows_of(tmp_path / "t.csv", "path", "label")


def test_paths_are_found_although_programs_have_rewritten_them(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Zoë/é.mp4") for form in ("NFC", "NFD"))
    (tmp_path / decomposed).parent.mkdir()
    for name in (decomposed, "sub/0007.mp4", "sub/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    lines = ["Path;Label", f"{composed};sad", "sub\\b.mp4;sad", "sub/7.mp4;sad", "sub/8.mp4;sad"]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    source = table.read([tmp_path / "t.csv"], tmp_path, DFEW, "train")
    assert [row["path"] for row in source.rows] == [decomposed, "sub/b.mp4", "sub/0007.mp4", "sub/8.mp4"]
    assert [row["clip_id"] for row in source.rows][1:] == ["sub/b", "sub/0007", "sub/8"]


def test_two_files_that_differ_in_zeros_are_not_taken_for_each_other(tmp_path):
    for name in ("07.mp4", "007.mp4", "7.wav"):
        (tmp_path / name).write_bytes(b"x")
    assert table.as_on_disk(tmp_path, "7.mp4") == "7.mp4"  # which is missing, and said so


@pytest.mark.parametrize("name", ["1.23457E+11", "1,2E+05", "02-Jan", "Jan 02", "3-Mrz"])
def test_what_excel_has_lost_is_named(tmp_path, name):
    with pytest.raises(InputError, match=r"t\.csv:2: .* is what Excel makes of a clip's name"):
        check_name("t.csv:2", name)
    (tmp_path / "t.csv").write_text(f"clip_id;path;label\n{name};a.mp4;sad\n")
    with pytest.raises(InputError, match=r"t\.csv:2: .* is what Excel makes"):
        table.read([tmp_path / "t.csv"], tmp_path, DFEW, "train")


def test_a_clip_goes_by_its_number_its_file_and_its_name():
    assert names_of("12583.0")[-1] == names_of("0012583.mp4")[-1] == names_of("D:\\x\\12583.MP4")[-1] == "12583"
    assert names_of("b.1") == ["b.1"] and names_of("0")[-1] == "0"
    assert unicodedata.normalize("NFC", "é") in names_of(unicodedata.normalize("NFD", "é"))


def test_ids_of_dfew_with_points_and_endings_are_read(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "EmoLabel_DataSplit" / f"{split}(single-labeled)"
        folder.mkdir(parents=True)
        (folder / "set_1.csv").write_text(
            "Video_Name;Label\n" + ("12.0;3.0\n00013.mp4;2\n" if split == "train" else "")
        )
    (tmp_path / "Clip" / "original").mkdir(parents=True)
    for name in ("12.mp4", "._12.mp4", "Thumbs.db", ".DS_Store"):
        (tmp_path / "Clip" / "original" / name).write_bytes(b"x")
    rows = dfew.read(tmp_path, 1).rows
    assert [(row["clip_id"], row["path"], row["label"]) for row in rows] == [
        ("00012", "12.mp4", "neutral"),
        ("00013", "13.mp4", "sad"),
    ]


def test_report_21_a_table_of_ch_sims_is_told_what_it_lacks(tmp_path):
    head = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
    (tmp_path / "t.csv").write_text(f"{head}\nvideo_0001,1,Hm,-0.8,-0.6,-0.8,-1,Negative,test\n")
    with pytest.raises(InputError, match=r"no header names the columns path, label .*video_id/clip_id\.mp4"):
        table.read([tmp_path / "t.csv"], tmp_path, DFEW, "train")
    (tmp_path / "t.csv").write_text(f"path,{head}\nvideo_0001/1.mp4,video_0001,1,Hm,-0.8,,,,Negative,test\n")
    with pytest.raises(InputError, match="a number is no emotion: name a column of scores `sentiment`"):
        table.read([tmp_path / "t.csv"], tmp_path, DFEW, "train")
    (tmp_path / "t.csv").write_text("path,sentiment,label,mode\na.mp4,-0.8,,test\n")
    assert table.read([tmp_path / "t.csv"], tmp_path, DFEW, "train").rows[0]["split"] == "test"
    (tmp_path / "t.csv").write_text("path,clip_id,label\nv1/1.mp4,1,sad\nv2/1.mp4,1,sad\n")
    with pytest.raises(InputError, match=r"t\.csv:3: clip 1 is named twice, first in .*t\.csv:2 \(a column clip_id"):
        table.read([tmp_path / "t.csv"], tmp_path, DFEW, "train")


def test_reasoning_is_matched_to_clips_that_excel_has_renamed(tmp_path):
    from migr.clips.manifest import Clip

    (tmp_path / "r.csv").write_text("Clip;Text\n42.0;He nods.\n", encoding="utf-8-sig")
    clips = [Clip("00042", tmp_path / "00042.mp4", "sad", "train")]
    rows = read_reasoning(tmp_path / "r.csv")
    assert match(tmp_path / "r.csv", rows, clips)["00042"]["text"] == "He nods."


def test_a_long_table_takes_linear_time(tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(2000):
        os.symlink("/dev/null", tmp_path / "clips" / f"{number:05d}.mp4")
    lines = [f"clips/{number}.mp4;sad" for number in range(2000)]
    (tmp_path / "t.csv").write_text("\n".join(["path;label", *lines]))
    assert table.read([tmp_path / "t.csv"], tmp_path, DFEW, "train").rows[7]["path"] == "clips/00007.mp4"
