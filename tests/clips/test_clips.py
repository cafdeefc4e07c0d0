import os

import pytest

from migr.clips.manifest import read_clips
from migr.errors import InputError
from migr.files.records import write_json, write_jsonl
from migr.text.labels import label_set

DFEW = label_set("dfew")


def row(name="a", **changes):
    return {"clip_id": name, "path": f"media/{name}.mp4", "label": "happy", "split": "train"} | changes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "media").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "media" / f"{name}.mp4").write_bytes(b"x")
    return tmp_path


def write(folder, *rows):
    write_jsonl(folder / "clips.jsonl", rows)
    return folder / "clips.jsonl"


def test_a_manifest_gives_clips_with_absolute_paths_and_keeps_unknown_keys(folder):
    file = write(folder, row("a", duration=2.5), row("b", label=None, split="test", transcript="well", has_video=False))
    first, second = read_clips(file, DFEW)
    assert first.path == (folder / "media" / "a.mp4").resolve() and first.path.is_absolute()
    assert (first.label, first.split, first.extra) == ("happy", "train", {"duration": 2.5})
    assert first.modalities == ("video", "audio")
    assert second.label is None and second.modalities == ("audio", "text")
    assert len({first, second}) == 2  # clips can be keys


def test_a_split_selects_its_clips_and_an_unknown_one_is_named_with_those_there_are(folder):
    file = write(folder, row("a"), row("b", split="test"), row("c"))
    assert [clip.clip_id for clip in read_clips(file, split="train")] == ["a", "c"]
    with pytest.raises(InputError, match=r"split 'dev'; there are \['test', 'train'\]"):
        read_clips(file, split="dev")


def test_another_root_replaces_the_manifests_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = write(elsewhere, row("a"))
    with pytest.raises(InputError, match="missing"):
        read_clips(file)
    assert read_clips(file, root=folder)[0].path == (folder / "media" / "a.mp4").resolve()
    with pytest.raises(InputError, match="no such folder"):
        read_clips(file, root=folder / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/etc/passwd"}, "must be relative"),
        ({"path": "media/../../secret.mp4"}, "must be relative"),
        ({"path": "http://host/a.mp4"}, "URL"),
        ({"path": "file:///etc/passwd"}, "URL"),
        ({"path": ""}, "non-empty"),
        ({"path": "media/a.mp4\0.txt"}, "non-empty"),
        ({"path": 3}, "non-empty"),
        ({"path": "media/gone.mp4"}, "missing"),
        ({"path": "media"}, "missing"),
        ({"label": "joyful"}, "not one of happy, sad"),
        ({"label": 1}, "string or null"),
        ({"split": None}, "split"),
        ({"has_audio": "yes"}, "has_audio must be true or false"),
        ({"has_audio": False, "has_video": False}, "nothing to reason about"),
        ({"clip_id": " "}, "clip_id"),
        ({"clip_id": 7}, "clip_id"),
        ({"clip_id": "a"}, "same clip_id stands in line 1"),
        ({"planted": "video"}, "planted must be an object"),
        ({"planted": {"dominant": ["video"]}}, "planted must be an object"),
        ({"planted": {"quality": 0.9}}, "planted.quality must give numbers"),
        ({"planted": {"quality": {"video": "high"}}}, "planted.quality must give numbers"),
        ({"planted": {"shown": {"video": None}}}, "planted.shown must give emotions"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line_and_clip(folder, changes, message):
    file = write(folder, row("a"), row("b", **changes))
    name = changes.get("clip_id", "b")
    with pytest.raises(InputError, match=message) as caught:
        read_clips(file, DFEW)
    assert str(caught.value).startswith(f"{file}:2: clip {name!r}: ")


def test_a_blank_line_does_not_shift_the_line_that_an_error_names(folder):
    file = write(folder, row("a"), row("b", label="joyful"))
    file.write_text("\n" + file.read_text().replace("\n", "\n\n"))
    with pytest.raises(InputError, match=r"clips\.jsonl:4: clip 'b'"):
        read_clips(file, DFEW)


def test_a_link_that_leaves_the_root_is_refused_and_one_that_stays_is_followed(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.mp4"
    outside.write_bytes(b"secret")
    (folder / "media" / "out.mp4").symlink_to(outside)
    (folder / "media" / "in.mp4").symlink_to(folder / "media" / "a.mp4")
    (folder / "dir").symlink_to(outside.parent)
    assert read_clips(write(folder, row("in")))[0].path.name == "a.mp4"
    for path in ("media/out.mp4", "dir/secret.mp4"):
        with pytest.raises(InputError, match="leads out of"):
            read_clips(write(folder, row("x", path=path)))
        with pytest.raises(InputError, match="leads out of"):
            read_clips(write(folder, row("x", path=path)), must_exist=False)


def test_a_loop_of_links_is_an_input_error(folder):
    os.symlink("loop.mp4", folder / "media" / "loop.mp4")
    with pytest.raises(InputError, match="clip 'loop'"):
        read_clips(write(folder, row("loop")))


def test_files_need_not_be_there_where_only_the_records_are_wanted(folder):
    assert read_clips(write(folder, row("gone")), must_exist=False)[0].clip_id == "gone"


def test_without_a_label_set_any_label_passes_and_an_empty_manifest_never(folder):
    assert read_clips(write(folder, row("a", label="smug")))[0].label == "smug"
    with pytest.raises(InputError, match="no clips"):
        read_clips(write(folder))
    with pytest.raises(InputError, match="no such file"):
        read_clips(folder / "nothing.jsonl")


def test_a_root_recorded_beside_the_manifest_is_used_and_a_given_one_wins(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = write(elsewhere, row("a"))
    write_json(elsewhere / "data.json", {"source": "planted"})  # no root: the manifest's folder
    with pytest.raises(InputError, match="missing"):
        read_clips(file)
    for root in (str(folder), os.path.relpath(folder, elsewhere)):
        write_json(elsewhere / "data.json", {"root": root})
        assert read_clips(file)[0].path == (folder / "media" / "a.mp4").resolve()
        with pytest.raises(InputError, match="missing"):
            read_clips(file, root=elsewhere)
        with pytest.raises(InputError, match="must be relative"):
            read_clips(write(elsewhere, row("a", path="../a.mp4")))
        write(elsewhere, row("a"))


@pytest.mark.parametrize("root", ["nowhere", "", 3, ["x"], "a\0b", "9" * 5000])
def test_a_recorded_root_that_is_no_folder_says_where_to_change_it(folder, root):
    file = write(folder, row("a"))
    write_json(folder / "data.json", {"root": root})
    with pytest.raises(InputError, match=r"data\.json: root"):
        read_clips(file)


def test_a_record_beside_the_manifest_that_is_something_else_does_not_matter(folder):
    file = write(folder, row("a"))
    write_json(folder / "data.json", ["someone's list"])
    assert read_clips(file)[0].clip_id == "a"
