"""What a crash of the machine can leave of a checkpoint: it is passed over, the one before it is taken."""

import io
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from migr.errors import InputError
from migr.files.records import write_json
from migr.training.runs import MARKER, begin, last_complete, mark

FILES = ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


@pytest.fixture
def run(tmp_path):
    """Two whole checkpoints."""
    for step in (6, 12):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "ref").mkdir(parents=True)
        for name in (*FILES, "ref/adapter_model.safetensors"):
            if name.endswith("safetensors"):
                save_file({"a": torch.randn(40), "b": torch.randn(40), "c": torch.randn(40)}, folder / name)
            else:
                (folder / name).write_bytes(torch.randn(64).numpy().tobytes())
        mark(folder)
    return tmp_path


def drop_tensor(file):
    weights = load_file(file)
    weights.pop("b")
    save_file(weights, file)


DAMAGES = {
    "lost": lambda file: file.unlink(),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "zero-filled": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a block of zeros": lambda file: file.write_bytes(file.read_bytes()[:-16] + bytes(16)),
    "another's": lambda file: file.write_bytes(file.read_bytes()[::-1]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_note(kind, run, capsys, tmp_path_factory):
    for name in (*FILES, "ref/adapter_model.safetensors", MARKER):
        copy = shutil.copytree(run, tmp_path_factory.mktemp("run") / "copy")
        DAMAGES[kind](copy / "checkpoint-12" / name)
        assert last_complete(copy) == copy / "checkpoint-6", name
        note = capsys.readouterr().err
        assert (name == MARKER and kind == "lost") or (note.count("\n") == 1 and "checkpoint-12 is damaged" in note)
        DAMAGES[kind](copy / "checkpoint-6" / name)
        assert last_complete(copy) is None
        capsys.readouterr()


def test_an_adapter_without_a_third_of_its_tensors_is_no_checkpoint(run):
    drop_tensor(run / "checkpoint-12" / "adapter_model.safetensors")
    assert last_complete(run) == run / "checkpoint-6"


@pytest.mark.parametrize("name", ["checkpoint-evil", "checkpoint-99", "checkpoint-", "checkpoint-" + "9" * 30])
def test_what_only_looks_like_a_checkpoint_is_none(name, run):
    (run / name).mkdir()
    (run / name / MARKER).touch()
    assert last_complete(run) == run / "checkpoint-12"


@pytest.mark.parametrize("text", ["[1]", "", "{}", '{"run": 3, "trainer": {}}', "\0\0\0"])
def test_a_damaged_record_of_a_run_is_one_line(text, run):
    (run / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        begin(run, {"a": 1})


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(run, capsys, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    assert begin(out, {"a": 1}) is None
    for step in (6, 12):
        shutil.copytree(run / f"checkpoint-{step}", out / f"checkpoint-{step}")
    (out / "checkpoint-12" / "optimizer.pt").unlink()
    assert begin(out, {"a": 1}) == str(out / "checkpoint-6")
    assert "optimizer.pt is missing" in capsys.readouterr().err
    write_json(out / "done.json", {})
    assert begin(out, {"a": 1}) == "done"


class Code:
    """A pickle of it is a command."""

    def __reduce__(self):
        return (os.mkdir, ("ran",))


def zipped(content):
    """The pickle as torch stores one."""
    file = io.BytesIO()
    torch.save({"state": torch.zeros(2)}, file)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


FOREIGN = {
    "optimizer.pt": pickle.dumps(Code()),
    "scheduler.pt": zipped(pickle.dumps(Code(), protocol=2)),
    "rng_state.pth": pickle.dumps(Code()),
    "adapter_model.safetensors": b"x" * 100,
    "trainer_state.json": b"[1]",
}


@pytest.fixture(scope="module")
def trained(stage, training, base_model, planted_run, tmp_path_factory):
    """(settings, folder) of a whole SFT run with a checkpoint each other step."""
    sizes = {"lora_r": 4, "max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    settings = {**training, **sizes, "model": base_model, "targets": planted_run.targets}
    folder = tmp_path_factory.mktemp("trained") / "whole"
    stage("sft", **settings, output_dir=folder)
    return settings, folder


@pytest.mark.slow
def test_a_foreign_checkpoint_runs_no_code_and_is_one_line(stage, trained, tmp_path, monkeypatch):
    settings, whole = trained
    monkeypatch.chdir(tmp_path)
    for name, content in FOREIGN.items():
        (run := tmp_path / name).mkdir()
        shutil.copy(whole / "run.json", run)
        checkpoint = shutil.copytree(whole / "checkpoint-4", run / "checkpoint-4")
        (checkpoint / name).write_bytes(content)
        mark(checkpoint)  # its marker says that all is well
        with pytest.raises(InputError, match=r"checkpoint-4 holds no state of a training; delete it") as caught:
            stage("sft", **settings, output_dir=run)
        assert str(caught.value).count("\n") == 0 and not (tmp_path / "ran").exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json"])
def test_sft_ends_as_it_would_have_whatever_a_power_cut_took(kind, name, stage, trained, tmp_path):
    settings, whole = trained
    cut = shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoint-6")
    for file in ("done.json", "adapter_model.safetensors"):
        (cut / file).unlink()
    DAMAGES[kind](cut / "checkpoint-4" / name)
    stage("sft", **settings, output_dir=cut)
    own, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
