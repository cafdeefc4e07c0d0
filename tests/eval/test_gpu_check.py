"""The check of speed at real size: its tiny form on a CPU, and how it is refused without a GPU."""

import sys

import pytest

from migr.errors import InputError


def test_the_tiny_check_prints_a_ratio_for_every_part(monkeypatch, tmp_path, capsys):
    from eval.bench import gpu_check

    flags = ["--tiny", "--rows", "2", "--generations", "2", "--new_tokens", "4", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *flags, "--out", str(tmp_path)])
    gpu_check.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and not line.startswith("| |")]
    assert [row[0].partition(",")[0].partition(" 2")[0] for row in rows] == [
        *["SFT"] * 3,
        "sampling",
        "GRPO step",
        "evaluation",
    ]
    assert all(float(number) > 0 for row in rows for number in row[1:4])


@pytest.mark.slow
def test_vllm_answers_and_samples_in_the_tiny_check(monkeypatch, tmp_path, capfd):
    from eval.bench import gpu_check

    flags = ["--tiny", "--rows", "2", "--generations", "2", "--new_tokens", "4", "--repeats", "1", "--vllm"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *flags, "--out", str(tmp_path)])
    gpu_check.main()
    lines = [line for line in capfd.readouterr().out.splitlines() if ", vLLM |" in line]
    assert [line.strip("| ").split(",")[0] for line in lines] == ["evaluation", "GRPO step"]
    assert all(float(line.split(" | ")[1]) > 0 for line in lines)


def test_without_a_gpu_it_is_refused(monkeypatch, tmp_path):
    from eval.bench import gpu_check

    monkeypatch.setattr("eval.bench.gpu_check.gpu_bytes", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match="no GPU here; --tiny"):
        gpu_check.main()
    assert not (tmp_path / "out").exists()
