"""The command line: flags and YAML of the same fields, includes, one line for each mistake."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from migr.cli import Parser, read_config, settings_of
from migr.errors import InputError
from migr.files.claim import claim, differences, finish, record_of
from migr.settings import EngineSettings, LabelSettings, MediaSettings, setting


@dataclass
class Own:
    """What this command has."""

    names: list[str] = field(default_factory=list, metadata={"help": "some"})
    share: float | None = setting(None, "a share, in %")
    loud: bool = setting(False, "say more")


@pytest.fixture
def parse(tmp_path):
    def run(*argv, yaml=None):
        parser = Parser("Does something.")
        parser.add_argument("file", nargs="?", type=Path)
        parser.add_settings(Own, MediaSettings, LabelSettings, EngineSettings)
        words = list(argv)
        if yaml is not None:
            (tmp_path / "a.yaml").write_text(yaml)
            words += ["--config", str(tmp_path / "a.yaml")]
        return parser.parse_args(words), parser

    return run


def test_flags_and_yaml_say_the_same_and_flags_win(parse):
    text = "names: [a, b]\nfps: 4\nloud: true\nlabels: mafw\nbackend: pyav\nmax_seconds: 60\n"
    args, parser = parse("clip.mp4", "--fps", "1", "--vllm_gpu_memory_utilization", "0.4", yaml=text)
    assert (args.names, args.file, args.loud, args.labels) == (["a", "b"], Path("clip.mp4"), True, "mafw")
    assert settings_of(MediaSettings, args) == MediaSettings(fps=1.0, backend="pyav", max_seconds=60.0)
    assert settings_of(EngineSettings, args).options()["vllm_gpu_memory_utilization"] == 0.4
    assert {"fps", "names", "loud"} < parser.explicit and "max_frames" not in parser.explicit


@pytest.mark.parametrize("words", [["--loud"], ["--loud", "true"]])
def test_a_switch_is_also_given_as_true_or_false(parse, words):
    assert parse(*words, "clip.mp4")[0].loud and not parse("--loud", "false")[0].loud


@pytest.mark.parametrize(
    ("argv", "yaml", "message"),
    [
        (["--max_frame", "4"], None, "unknown flag '--max_frame', did you mean 'max_frames'"),
        ([], "max_frame: 4\n", "a.yaml: unknown key 'max_frame', did you mean 'max_frames'"),
        (["--fps", "fast"], None, "argument --fps: invalid float value: 'fast'"),
        ([], "fps: fast\n", "argument --fps: invalid float value: 'fast'"),
        ([], "max_frames: 4.0\n", "argument --max_frames: invalid int value: '4.0'"),
        ([], "fps: [1, 2]\n", "a.yaml: fps must be one value"),
        ([], "loud: 3\n", "a.yaml: loud must be true or false, not 3"),
        ([], "fps: 1\nfps: 2\n", "stands there twice"),
        ([], "include: a.yaml\n", "include must be the path of another YAML file"),
        ([], "include: b.yaml\n", "b.yaml: no such file"),
        (["--engine", "tgi"], None, "invalid choice: 'tgi'"),
        (["--config"], None, "--config: give the path of one YAML file"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(parse, argv, yaml, message):
    with pytest.raises(InputError) as error:
        parse(*argv, yaml=yaml)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_yaml_includes_another_and_its_own_keys_win(tmp_path):
    (tmp_path / "clips.yaml").write_text("fps: 1\nmax_frames: 4\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sft.yaml").write_text("include: ../clips.yaml\nfps: 2\n")
    assert read_config(tmp_path / "in" / "sft.yaml") == {"fps": 2, "max_frames": 4}


def test_what_is_inherited_is_said_where_a_flag_differs(parse, capsys):
    args, parser = parse("--fps", "2", "--max_frames", "8")
    parser.inherit(args, {"fps": 2.0, "max_frames": 4, "backend": "pyav"}, "migr.json")
    assert (args.max_frames, args.backend) == (8, "pyav")
    assert capsys.readouterr().err == "note: max_frames is 8 here and 4 in migr.json\n"


# Outputs


def test_the_record_of_a_folder_is_inside_whatever_its_name(tmp_path):
    out = tmp_path / "qwen2.5"
    assert not claim(out, {"a": 1}, [out / "x.json"])
    assert (out / "run.json").is_file()


def test_an_output_goes_on_is_finished_or_is_refused(tmp_path):
    out, config = tmp_path / "out.jsonl", {"media": {"fps": 2.0}, "order": "video"}
    assert not claim(out, config, [out])
    out.write_text("{}\n")
    assert not claim(out, config, [out])  # goes on
    finish(out)
    assert claim(out, config, [out])
    with pytest.raises(InputError, match=r"with another media\.fps \(2\.0, now 4\.0\): give another --out"):
        claim(out, config | {"media": {"fps": 4.0}}, [out])
    assert not claim(out, config | {"order": "audio"}, [out], overwrite=True) and not out.exists()
    out.write_text("{}\n")
    record_of(out, True).unlink()
    with pytest.raises(InputError, match="nothing tells which run wrote it"):
        claim(out, config, [out])


def test_what_an_attempt_with_broken_input_left_is_not_in_the_way(tmp_path):
    out = tmp_path / "out.jsonl"
    assert not claim(out, {"model": "broken"}, [out])
    out.touch()
    assert not claim(out, {"model": "mended"}, [out])


def test_differences_name_the_key_with_both_values():
    old, new = {"a": {"b": 1, "c": 2}, "x": None}, {"a": {"b": 1, "c": 3}, "y": "z" * 99}
    assert differences(old, new) == ["a.c (2, now 3)", f"y (none, now {'z' * 60}…)"]
