import base64
import hashlib
import json
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from eval.figures.codes import CELL_OF
from eval.figures.metrics import measure
from eval.figures.rates import NAMES
from eval.page.browser import CELLS, Run
from eval.page.tables import ROWS, Table, percent, print_table, reliability
from eval.report import main, write_page
from migr.errors import InputError
from migr.files.records import write_json, write_jsonl
from migr.text.labels import label_set

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>\x00\x1b[31m\u202e\ud800&amp;{{ 7*7 }}"


class Page(HTMLParser):
    """Collects what a browser would see: tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def metrics(seed=0, n=400, judge=True):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, n)
    answers = np.where(rng.random(n) < 0.7, labels, rng.integers(-1, 7, n))
    judgements = np.where(rng.random(n) < 0.8, answers, rng.integers(-1, 7, n))
    first, dominants = rng.integers(0, 2, n), rng.integers(0, 2, n)
    found = measure(labels, answers, judgements, CLASSES, first, dominants, resamples=50, hidden=judgements)
    found["judge"] = {"name": "lexicon", "accuracy": 0.912, "accuracy_ci95": [0.9, 0.93], "n": 700} if judge else None
    return found | {"settings": {"model": "runs/model", "split": "test"}}


def shown(path, *runs, **rest):
    """The page of runs without files: names and figures alone."""
    write_page(path, [Run(name, found) for name, found in runs], **rest)
    return read(path)


def with_a_clip(**changes):
    row = {
        "clip_id": "c1",
        "label": "angry",
        "response": "<think><audio>A shout.</audio></think><answer>angry</answer>",
    }
    return Run("migr", metrics(), label_set("dfew"), [{**row, **changes}])


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_says_every_figure_with_its_interval_and_denominator(tmp_path):
    found = metrics()
    page = shown(tmp_path / "page.html", ("migr", found))
    text = page.text.replace("\u00a0", " ")
    for key, label, _ in ROWS:
        low, high = found[f"{key}_ci95"]
        figure = f"{100 * found[key]:.2f} % {100 * low:.1f} to {100 * high:.1f} n {found[f'{key}_n']}"
        assert label in text and figure in text
    assert {key for key, _, _ in ROWS} == set(NAMES)
    for count in (found["n"], found["n_unparseable"], found["n_judge_failed"], *found["cells"].values()):
        assert str(count) in page.text
    assert "91.20" in page.text and "n 700" in page.text and "runs/model" in page.text


def test_the_page_asks_nothing_of_the_network_and_runs_only_its_own_script(tmp_path):
    page = shown(tmp_path / "page.html", ("a", metrics()), ("b", metrics(1)))
    assert not {"script", "nav", "video"} & {tag for tag, _ in page.tags}  # figures alone need no browser
    write_page(tmp_path / "page.html", [with_a_clip()])
    page = read(tmp_path / "page.html")
    tags = [tag for tag, _ in page.tags]
    assert set(tags).isdisjoint({"link", "iframe", "object", "base"}) and tags.count("script") == 2
    for _, attrs in page.tags:
        assert not {"src", "srcset"} & set(attrs) and attrs.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)
    text = (tmp_path / "page.html").read_text()
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy


def test_hostile_text_is_shown_and_never_obeyed(tmp_path):
    found = metrics()
    found["settings"] = {HOSTILE: HOSTILE}
    found["judge"] = {"name": HOSTILE, "accuracy": None, "n": 0}
    found["per_class"] = {HOSTILE: found["per_class"]["sad"]}
    found["confusion"]["labels"][0] = found["confusion"]["answers"][0] = HOSTILE
    row = with_a_clip(clip_id=HOSTILE, response=f"<think><audio>{HOSTILE}</audio></think><answer>{HOSTILE}</answer>")
    runs = [Run(HOSTILE, found, row.labels, row.predictions), Run("b", found)]
    write_page(tmp_path / "page.html", runs, title=HOSTILE, intro=HOSTILE)
    text = (tmp_path / "page.html").read_bytes().decode("utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 2 and "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert('x')</script>" in page.text and "{{ 7*7 }}" in page.text
    assert not any(character in text for character in "\x00\x1b\u202e\ud800")
    data = text[text.index('id="data">') + 10 :]
    data = data[: data.index("</script>")]
    assert not set("<>&") & set(data)
    clip = json.loads(data)["clips"][0]
    assert clip["runs"][0]["parts"][0][1].startswith("<script>alert('x')</script>") and clip["runs"][1] is None


def test_several_runs_stand_side_by_side_with_the_same_rows(tmp_path):
    runs = {"baseline": metrics(1), "migr": metrics(2)}
    page = shown(tmp_path / "page.html", *runs.items())
    assert sum(tag == "tr" for tag, _ in page.tags) > len(ROWS)
    for found in runs.values():
        assert all(percent(found[key]) in "".join(page.words) for key in NAMES)
    bars = [attrs["class"] for tag, attrs in page.tags if tag == "rect"]
    assert bars.count("run0") == bars.count("run1") == 2 * len(CLASSES) + 3 * 2
    with pytest.raises(InputError, match="the same name"):
        shown(tmp_path / "page.html", ("a", metrics()), ("a", metrics(1)))


def test_what_changed_between_two_runs_is_counted(tmp_path):
    changed = with_a_clip(answer="sad")
    write_page(tmp_path / "page.html", [with_a_clip(), Run("new", metrics(1), changed.labels, changed.predictions)])
    page = read(tmp_path / "page.html")
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and "cell0=right_not" in attrs.get("href", "")]
    assert links == ["#view=clips&cell0=right_not_judged&cell1=wrong_not_judged"]
    assert set(CELLS) == set(CELL_OF.values())  # the page and the comparison name the cells alike


def test_further_tables_follow_the_figures(tmp_path):
    table = Table(HOSTILE, ("", "first"), [("a row", HOSTILE)], "what it says")
    page = shown(tmp_path / "page.html", ("a", metrics()), tables=[table])
    assert "what it says" in page.text and page.text.count("<script>alert('x')</script>") == 2
    assert "script" not in {tag for tag, _ in page.tags}


def test_bars_and_whiskers_stay_inside_their_drawing(tmp_path):
    page = shown(tmp_path / "page.html", ("a", metrics(3, n=12)), ("b", metrics(4, n=12)))
    ends = [float(attrs["x"]) + float(attrs["width"]) for tag, attrs in page.tags if tag == "rect"]
    ends += [float(attrs["d"].split("H")[1]) for tag, attrs in page.tags if attrs.get("class") == "whisker"]
    assert ends and max(ends) <= 422.1


def test_images_are_embedded_whole_and_others_are_refused(tmp_path):
    image, drawing = tmp_path / "plot.png", tmp_path / "plot.svg"
    image.write_bytes(png(64))
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    page = shown(tmp_path / "page.html", ("a", metrics()), sections=[("Gates", [image, str(drawing)])])
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert base64.b64decode(sources[0].removeprefix("data:image/png;base64,")) == image.read_bytes()
    assert base64.b64decode(sources[1].removeprefix("data:image/svg+xml;base64,")) == drawing.read_bytes()
    with pytest.raises(InputError, match=r"missing\.png: no such image"):
        shown(tmp_path / "page.html", ("a", metrics()), sections=[("Gates", [tmp_path / "missing.png"])])


def test_finished_evaluations_are_put_side_by_side_by_the_command(tmp_path, capsys):
    for name in ("a", "b"):
        rows = with_a_clip().predictions
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "metrics.json", metrics() | {"settings": {"judgements": "gone.jsonl"}})
        write_jsonl(tmp_path / name / "predictions.jsonl", rows)
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both" / "page.html")])
    assert "2 runs" in capsys.readouterr().out
    assert '"runs":["a","b"]' in (tmp_path / "both" / "page.html").read_text()
    with pytest.raises(InputError, match=r"c/metrics\.json: no such file"):
        main([str(tmp_path / "c"), "--out", str(tmp_path / "page.html")])
    with pytest.raises(InputError, match=r"no\.jsonl: no such file"):
        main([str(tmp_path / "a"), "--clips", "no.jsonl", "--out", str(tmp_path / "page.html")])


def test_a_foreign_run_copies_no_file_from_outside_of_its_folder(tmp_path):
    """Its manifest may name any place of this machine as the root of the clips."""
    row = {"clip_id": "c1", "label": "angry", "response": "<think>x</think><answer>angry</answer>"}
    (folder := tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("secret")
    write_json(folder / "metrics.json", metrics() | {"settings": {}})
    write_jsonl(folder / "predictions.jsonl", [row])
    write_jsonl(folder / "clips.jsonl", [{"clip_id": "c1", "path": "secret", "label": "angry", "split": "test"}])
    write_json(folder / "data.json", {"root": str(tmp_path)})
    argv = [str(folder), "--copy_clips", "--out", str(tmp_path / "public" / "page.html")]
    with pytest.raises(InputError, match=r"outside of its folder; to copy them from there, name it yourself: --clips"):
        main(argv)
    assert not (tmp_path / "public").exists()
    main([*argv, "--clips", str(folder / "clips.jsonl")])
    assert not list((tmp_path / "public").glob("*_files/*")), "only video and sound are copied"


def test_the_table_and_the_page_say_when_the_judge_is_that_of_the_rewards(tmp_path, capsys):
    judge = {"name": "lexicon", "accuracy": 0.9, "n": 210, "blind": ["contempt"], "rewarded": True}
    said = "cannot name contempt; the model was rewarded by it: circular"
    assert reliability(judge).endswith(f"(n\u00a0210); {said}")
    assert reliability(judge | {"accuracy": None}).endswith(f"not measured; {said}")
    page = shown(tmp_path / "page.html", ("run", metrics() | {"judge": judge}))
    assert "the model was rewarded by it: circular" in page.text and "cannot name contempt" in page.text
    print_table({"run": metrics() | {"judge": judge}})
    assert "circular" in capsys.readouterr().out


def older(figures, *names):
    """Figures as they were before these rates were counted."""
    gone = {f"{name}{end}" for name in names for end in ("", "_ci95", "_n")}
    return {
        key: {name: older(part, *names) for name, part in value.items()} if key.startswith("per_") else value
        for key, value in figures.items()
        if key not in gone
    }


def test_a_run_that_was_counted_before_a_rate_was_there_is_shown_without_it_and_that_is_said(tmp_path, capsys):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "predictions.jsonl", with_a_clip().predictions)
    names = ("inconsistent_among_correct_hidden", "fcr")
    write_json(tmp_path / "old" / "metrics.json", older(metrics(), *names))
    write_json(tmp_path / "new" / "metrics.json", metrics())
    main([str(tmp_path / "old"), str(tmp_path / "new"), "--out", str(tmp_path / "page.html")])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {tmp_path}/old: counted before there was inconsistent_among_correct_hidden, fcr")
    assert f"{percent(metrics()['fcr'])} ".replace("\u00a0", " ") in read(tmp_path / "page.html").text.replace(
        "\u00a0", " "
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": {}}, "cells.right_consistent: Field required"),
        ({"cells": {**metrics()["cells"], "more": "x"}}, "cells.more: Extra inputs are not permitted"),
        ({"war": "high"}, "war: Input should be a valid number"),
        ({"war": 1.5}, "war: Input should be less than or equal to 1"),
        ({"war_ci95": [0.1]}, "war_ci95: List should have at least 2 items"),
        ({"war_ci95": None}, "Value error, war has no war_ci95"),
        ({"uar_n": -1}, "uar_n: Input should be greater than or equal to 0"),
        ({"per_class": {"sad": 3}}, "per_class.sad: Input should be a valid dictionary"),
        ({"confusion": {}}, "confusion.labels: Field required"),
        ({"judge": "lexicon"}, "judge: Input should be a valid dictionary"),
        ({"settings": 3}, "settings: Input should be a valid dictionary"),
        ({"n": None}, "n: Input should be a valid integer"),
        ({"n": True}, "n: Input should be a valid integer"),
    ],
)
def test_figures_that_are_none_are_named(tmp_path, change, message):
    write_json(tmp_path / "metrics.json", metrics() | change)
    with pytest.raises(InputError, match=f"metrics.json: {message}"):
        main([str(tmp_path), "--out", str(tmp_path / "page.html")])


def test_a_judge_of_a_run_needs_no_count_of_texts(tmp_path):
    write_json(tmp_path / "metrics.json", metrics() | {"judge": {"name": "someone", "accuracy": 0.9}})
    main([str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert "someone" in read(tmp_path / "page.html").text


def test_a_run_without_judge_importances_or_rates_still_has_a_page_and_a_table(tmp_path, capsys):
    bare = measure([0, 1], [-1, -1], [-1, -1], CLASSES)
    page = shown(tmp_path / "page.html", ("bare", bare))
    assert "no judge" in page.text and "dominant modality</h2>" not in (tmp_path / "page.html").read_text()
    print_table({"bare": bare})
    printed = capsys.readouterr().out
    assert "–" in printed and "no judge" in printed


def png(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    noise = np.random.default_rng(0).integers(0, 256, (side, side + 1), np.uint8)
    noise[:, 0] = 0  # no filter
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(noise.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
