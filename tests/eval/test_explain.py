"""One clip explained: with both media, with one, with and without importance."""

import re
import subprocess
import sys

import media_files
import pytest
from conftest import MEDIA, ROOT, flags

from eval.explain import explain, main, page, show
from migr.clips.manifest import read_clips
from migr.clips.media import MediaSettings
from migr.errors import InputError
from migr.settings import DecodingSettings
from migr.text.format import parse
from migr.text.labels import label_set

SETTINGS = MediaSettings(**MEDIA)


@pytest.fixture(scope="module")
def importance(planted_run, warm_model, stage, tmp_path_factory):
    out = tmp_path_factory.mktemp("importance")
    files = {"clips": planted_run.clips, "model": warm_model, "out": out, "cache_dir": planted_run.cache}
    stage("importance", **files, **MEDIA, folds=2)
    return out


@pytest.fixture(scope="module")
def files(planted_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {
        "both": read_clips(planted_run.clips, split="test")[0].path,
        "video": media_files.clip(folder / "silent <b>.mp4", audio=False),
        "audio": media_files.clip(folder / "sound.mp4", video=False),
    }


@pytest.mark.parametrize("kind", ["both", "video", "audio"])
def test_a_clip_with_any_media_is_explained(kind, files, warm_model, importance, capsys):
    from rich.console import Console

    labels = label_set("dfew")
    found = explain(files[kind], warm_model, importance, labels, SETTINGS, DecodingSettings(max_new_tokens=60))
    assert set(found.importance) == ({"video", "audio"} if kind == "both" else {kind})
    assert sum(found.importance.values()) == pytest.approx(1, abs=1e-5) and found.about in labels.labels
    if found.answer is not None:
        assert found.about == found.answer  # the importance is about the emotion that was answered
    assert parse(found.text) == found.response
    show(found, Console(width=100))
    said = capsys.readouterr().out
    assert f"importance for {found.about}" in said and "█" in said and "answer" in said
    text = page(found)
    assert text.count("<img") == (0 if kind == "audio" else len(found.media.frames))
    assert ("<polyline" in text) == (kind != "video")
    assert not re.search(r'(?:src|href)="(?!data:)', text)  # nothing is fetched
    if kind == "video":
        assert "silent &lt;b&gt;.mp4" in text and "<b>.mp4" not in text


def test_reasoning_comes_in_the_colours_of_its_modalities(files, warm_model, capsys):
    from dataclasses import replace

    from rich.console import Console

    found = explain(files["both"], warm_model, None, label_set("dfew"), SETTINGS, DecodingSettings(max_new_tokens=5))
    text = "<think><audio>a <i>low</i> voice</audio><video>a smile</video>so glad</think><answer>happy</answer>"
    found = replace(found, text=text, response=parse(text), answer="happy")
    shown = page(found)
    assert '<p class="seg audio"><b>audio</b> a &lt;i&gt;low&lt;/i&gt; voice</p>' in shown
    assert shown.index("seg audio") < shown.index("seg video") < shown.index("so glad") < shown.index("Answer: happy")
    assert "No importance" in shown
    show(found, Console(width=100, force_terminal=True, color_system="standard"))
    said = capsys.readouterr().out
    assert "\x1b[33ma <i>low</i> voice" in said and "\x1b[36ma smile" in said and "no importance: give" in said
    cut = replace(found, text="just words", response=parse("just words"), answer=None, finished=False)
    show(cut, Console(width=100))
    assert "as it came" in (said := capsys.readouterr().out) and "just words" in said and "cut: raise" in said


def test_what_does_not_belong_together_is_an_input_error(files, warm_model, importance, tmp_path):
    with pytest.raises(InputError, match=r"no fusion\.safetensors"):
        explain(files["both"], warm_model, tmp_path, label_set("dfew"), SETTINGS, DecodingSettings(max_new_tokens=5))
    with pytest.raises(InputError, match="fitted on the labels happy"):
        explain(files["both"], warm_model, importance, label_set("mafw"), SETTINGS, DecodingSettings(max_new_tokens=5))
    (tmp_path / "text.mp4").write_text("no clip")
    with pytest.raises(InputError, match=r"text\.mp4"):
        explain(
            tmp_path / "text.mp4", warm_model, None, label_set("dfew"), SETTINGS, DecodingSettings(max_new_tokens=5)
        )


def test_the_command_writes_one_page_and_mistakes_are_one_line(files, warm_model, tmp_path):
    command = [sys.executable, ROOT / "eval" / "explain.py", files["audio"], *flags(model=warm_model, **MEDIA)]
    command += ["--max_new_tokens", "10", "--config", ROOT / "configs" / "3b_24gb" / "eval.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    assert "explain: sound.mp4" in done.stdout.splitlines()[-1] and (tmp_path / "sound.html").is_file()


def test_mistakes_are_one_line(tmp_path, warm_model, monkeypatch):
    for flag, value, message in (
        ("model", warm_model, "gone.mp4: no such file"),
        ("fsp", "2", "--help lists the flags"),
    ):
        monkeypatch.setattr(sys, "argv", ["explain.py", str(tmp_path / "gone.mp4"), f"--{flag}", str(value)])
        with pytest.raises(InputError, match=message):
            main()
