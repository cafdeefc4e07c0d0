"""All commands that load a model x all kinds of broken model folders: one line and status 2 before anything is written.

test_foreign_models.py holds what the loaders say; here every command is shown to pass through them.
"""

import json
import shutil

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import pytest
import torch
import whole
from broken import fresh, remnants, run, words
from conftest import TRAINING, flags
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from migr.files.records import write_jsonl
from migr.importance.store import build, save
from migr.omni.load import LORA, load_thinker
from migr.omni.tiny import build_tiny
from migr.sentiment.pickles import read_mmsa
from migr.sentiment.sets import sentiment_set
from migr.sentiment.written import write_data
from migr.text.labels import DFEW
from tests.sentiment.files import tiny_lm

pytestmark = pytest.mark.slow
WEIGHTS = "model.safetensors"
TEXTS = ["Which emotion? happy or sad. <think><video>the face smiles</video></think><answer>happy</answer>"] * 20


def edit(folder, name, change):
    file = folder / name
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def weights(folder, change, name=WEIGHTS):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, {"format": "pt"})


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def with_code(folder):
    (folder / "evil.py").write_text("raise SystemExit('the code ran')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    edit(folder, "config.json", lambda c: c.update(model_type="evil", auto_map=auto))


def code_of_the_processor(folder):
    (folder / "evil.py").write_text("raise SystemExit('the code ran')\nclass Evil: pass\n")
    auto = {"video_processor_type": "Evil", "auto_map": {"AutoVideoProcessor": "evil.Evil"}}
    edit(folder, "processor_config.json", lambda c: c["video_processor"].update(auto))


def cut(name):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def written(name, content):
    return lambda folder: (folder / name).write_text(content)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
CONFIG = {
    "empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config a list": written("config.json", "[1]"),
    "config deep": written("config.json", "[" * 100_000),
    "config not UTF-8": lambda folder: (folder / "config.json").write_bytes(b'{"model_type": "\xff"}'),
    "unknown kind": lambda folder: edit(folder, "config.json", lambda c: c.update(model_type="llama2000")),
    "code of its own": with_code,
}
TOWERS = {
    "code of the processor": code_of_the_processor,
    "weights NaN": lambda folder: weights(folder, lambda w: next(iter(w.values()))[0].fill_(float("nan"))),
    "weights missing": lambda folder: weights(folder, lambda w: [w.pop(name) for name in sorted(w)[::3]]),
    "weights gone": lambda folder: (folder / WEIGHTS).unlink(),
    "weights pickled": pickled,
    "weights cut": cut(WEIGHTS),
    "weights empty": written(WEIGHTS, ""),
    "weights a header of 2^64 bytes": lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 64),
    "larger than its weights": lambda folder: edit(
        folder, "config.json", lambda c: c["thinker_config"]["text_config"].update(intermediate_size=2**24)
    ),
    "tokenizer gone": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
    "tokenizer deep": written("tokenizer.json", "[" * 100_000),
    "tokenizer a list": written("tokenizer.json", "[1]"),
    "processor a list": written("processor_config.json", "[1]"),
    "record a list": written("migr.json", "[1]"),
}
TEMPLATES = {
    "no template": lambda folder: (folder / "chat_template.jinja").unlink(),
    "template without end": written("chat_template.jinja", ENDLESS),
    "template no Jinja": written("chat_template.jinja", "{% for %}"),
    "template that refuses": written("chat_template.jinja", "{{ raise_exception('no') }}"),
}
ALL = CONFIG | TOWERS | TEMPLATES
# The record is read neither where text alone is nor where an adapter has its own.
WITHOUT_RECORD = {kind: spoil for kind, spoil in ALL.items() if kind != "record a list"}
LOADED = CONFIG | TOWERS  # whatever stands in the template
LANGUAGE = CONFIG | {kind: spoil for kind, spoil in TOWERS.items() if kind.startswith(("weights", "tokenizer"))}


def adapter_nan(folder):
    weights(folder, lambda w: next(iter(w.values()))[0].fill_(float("nan")), "adapter_model.safetensors")


ADAPTERS = {
    "empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "config a list": written("adapter_config.json", "[1]"),
    "weights cut": cut("adapter_model.safetensors"),
    "weights NaN": adapter_nan,
    "weights missing": lambda folder: weights(
        folder, lambda w: [w.pop(name) for name in sorted(w)[::3]], "adapter_model.safetensors"
    ),
    "base on the Hub": lambda folder: edit(
        folder, "adapter_config.json", lambda c: c.update(base_model_name_or_path="evil-org/evil-model")
    ),
}
FUSION = {
    "empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "facts a list": written("fusion.json", "[1]"),
    "facts gone": lambda folder: (folder / "fusion.json").unlink(),
    "labels a number": lambda folder: edit(folder, "fusion.json", lambda c: c.update(labels=3)),
    "labels of numbers": lambda folder: edit(folder, "fusion.json", lambda c: c.update(labels=[1, 2])),
    "another kind": lambda folder: edit(folder, "fusion.json", lambda c: c.update(fusion="evil")),
    "kind a list": lambda folder: edit(folder, "fusion.json", lambda c: c.update(fusion=[])),
    "no shape": lambda folder: edit(folder, "fusion.json", lambda c: c.pop("config")),
    "shape a number": lambda folder: edit(folder, "fusion.json", lambda c: c.update(config=3)),
    "a huge shape": lambda folder: edit(folder, "fusion.json", lambda c: c["config"].update(hidden=10**9)),
    "a shape of words": lambda folder: edit(folder, "fusion.json", lambda c: c["config"].update(hidden="x")),
    "weights cut": cut("fusion.safetensors"),
    "weights NaN": lambda folder: weights(
        folder, lambda w: next(iter(w.values())).fill_(float("nan")), "fusion.safetensors"
    ),
}
SHORT = {
    "ENGINE": "--engine transformers --dtype float32 --max_frames 4 --max_pixels 3136 --limit 1",
    "TRAIN": f"--max_steps 1 {' '.join(flags(**TRAINING))}",
    "SMALL": "--max_frames 4 --max_pixels 3136",
}
# command -> [(its line, the input that is broken, the kinds of breaking)]
COMMANDS = {
    "stages/describe.py": [("--clips {clips} --model {model} ENGINE --out {out}.jsonl", "model", ALL)],
    "stages/importance.py": [("--clips {clips} --model {model} --folds 2 SMALL --out {out}", "model", LOADED)],
    "stages/export.py": [
        ("--model {model} --out {out}", "model", LOADED),
        ("--model {adapter} --out {out}", "adapter", ADAPTERS),
    ],
    "stages/sft.py": [("--model {model} --clips {clips} --targets {targets} TRAIN --output_dir {out}", "model", ALL)],
    "stages/grpo.py": [
        (
            "--model {model} --adapter {adapter} --clips {clips} --rewards format accuracy TRAIN --output_dir {out} "
            "--per_device_train_batch_size 2 --num_generations 2",
            name,
            kinds,
        )
        for name, kinds in (("model", WITHOUT_RECORD), ("adapter", {**ADAPTERS, "base on the Hub": adapter_nan}))
    ],
    "stages/targets.py": [
        (
            "--clips {clips} --reasoning {free} --order video-first --assigner llm --assigner_model {model} "
            "--engine transformers --out {out}.jsonl",
            "model",
            WITHOUT_RECORD,
        )
    ],
    "stages/demo/check.py": [("--clips {clips} --model {model} --split test ENGINE --out {out}.json", "model", ALL)],
    "stages/sentiment.py": [
        (
            "--data {mosi} --head llm --model {language} --grid 0.5 --num_train_epochs 1 --no-ablations --out {out} "
            "--disable_tqdm",
            "language",
            LANGUAGE,
        )
    ],
    "stages/memory.py": [("--config {sft_yaml} --model {model}", "model", CONFIG)],
    "stages/rollout_server.py": [("--model {model} --port 0", "model", CONFIG)],
    "eval/consistency.py": [("--clips {clips} --model {model} --judge lexicon ENGINE --out {out}", "model", ALL)],
    "eval/judges.py": [("llm:{model} --texts {check} --engine transformers --out {out}", "model", WITHOUT_RECORD)],
    "eval/explain.py": [
        ("{clip} --model {model} SMALL --out {out}.html", "model", ALL),
        ("{clip} --model {model} --importance {fusion} SMALL --out {out}.html", "fusion", FUSION),
    ],
    "eval/grounding.py": [
        ("--predictions {predictions} --clips {clips} --model {model} ENGINE --out {out}", "model", LOADED)
    ],
}
CASES = [(command, number) for command, lines in COMMANDS.items() for number in range(len(lines))]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Whole input, and models that go with it."""
    folder = tmp_path_factory.mktemp("models")
    world = whole.build(folder)
    model = build_tiny(folder / "tiny", TEXTS)
    thinker = get_peft_model(
        load_thinker(model), LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **LORA)
    )
    thinker.peft_config["default"].base_model_name_or_path = str(model)
    thinker.save_pretrained(folder / "lora", save_embedding_layers=False)
    net = build("dual-gate", dims={"video": 256, "audio": 256}, n_classes=7)
    save(net, folder / "fusion" / "fusion.safetensors", labels=list(DFEW))
    rows = [{"clip_id": f"c{i}", "prompt": "Which?", "target": "<think>x</think><answer>sad</answer>"} for i in (1, 3)]
    write_jsonl(folder / "targets.jsonl", rows)
    (folder / "sft.yaml").write_text("clips: x\n")
    dataset = sentiment_set("mosi")
    write_data(folder / "mosi", read_mmsa(world["features"], dataset)[0], dataset, {"source": "mmsa"}, [])
    more = {
        "mosi": folder / "mosi",
        "language": tiny_lm(folder / "language"),
        "model": model,
        "adapter": folder / "lora",
        "fusion": folder / "fusion",
        "targets": folder / "targets.jsonl",
    }
    return {**world, **more, "sft_yaml": folder / "sft.yaml", "clip": world["root"] / "clips" / "c0.mp4"}


@pytest.mark.parametrize(("command", "number"), CASES)
def test_a_broken_model_folder_is_one_line_and_leaves_nothing(command, number, places, tmp_path, capsys):
    line, name, kinds = COMMANDS[command][number]
    for word, more in SHORT.items():
        line = line.replace(word, more)
    faults = []
    for kind, spoil in {"whole": None, **kinds, "missing": None, "a file": None}.items():
        folder = tmp_path / "broken"
        if kind == "whole" and command in ("stages/rollout_server.py", "stages/grpo.py"):
            continue  # it would serve; random weights earn nothing that could be learned
        if kind == "whole":
            shutil.copytree(places[name], folder)
        elif spoil is not None:
            spoil(shutil.copytree(places[name], folder))
        elif kind == "a file":
            folder.write_text("x")
        ended = run(command, words(line, {**places, name: folder, "out": tmp_path / "out"}), capsys)
        fault, left = ended.fault(), ", ".join(rest for path in tmp_path.glob("out*") for rest in remnants(path))
        if kind == "whole":
            fault, left = (ended.err[-500:] if ended.status else None), None
        if fault or left:
            faults.append(f"{kind}: {fault or left}")
        for path in tmp_path.iterdir():
            fresh(path)
    assert not faults, f"{len(faults)} faults\n" + "\n\n".join(faults)
