"""Model folders and adapters from strangers: no code of theirs runs, nothing is guessed, nobody is asked."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, GenerationConfig

from migr.engine import Request, open_engine
from migr.errors import InputError
from migr.files.fingerprint import model_digest
from migr.files.growing import lock
from migr.judge import open_judge
from migr.omni.adapters import check_saved
from migr.omni.export import adapter_base, export
from migr.omni.load import LORA, load_processor, load_thinker, thinker_config
from migr.omni.prompt import render_prompt
from migr.omni.tiny import build_tiny
from migr.settings import EngineSettings
from migr.text.labels import label_set

ROOT = Path(__file__).parents[2]
TEXTS = ["Which emotion? happy or sad. <think><video>the face smiles</video></think><answer>happy</answer>"] * 20
LABELS = label_set("dfew")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("model") / "tiny", TEXTS)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    thinker = get_peft_model(
        load_thinker(model), LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **LORA)
    )
    thinker.peft_config["default"].base_model_name_or_path = str(model)
    thinker.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "he", "smiles", "."]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    names = dict(enumerate(LABELS.labels))
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=8)
    BertForSequenceClassification(BertConfig(id2label=names, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tmp_path):
    """`copy(folder)` gives a copy to spoil."""

    def make(folder):
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return make


def edit(file, change):
    values = json.loads(file.read_text()) if file.exists() else {}
    change(values)
    file.write_text(json.dumps(values))


def tensors(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


# No code but ours

CODE = {
    "config": ("config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})),
    "thinker": (
        "config.json",
        lambda c: c["thinker_config"].update(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
    ),
    "tokenizer": (
        "tokenizer_config.json",
        lambda c: c.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ),
    "processor": (
        "processor_config.json",
        lambda c: c.update(processor_class="Evil", auto_map={"AutoProcessor": "evil.Evil"}),
    ),
    "video processor": (
        "processor_config.json",
        lambda c: c["video_processor"].update(
            video_processor_type="Evil", auto_map={"AutoVideoProcessor": "evil.Evil"}
        ),
    ),
    "image processor": (
        "processor_config.json",
        lambda c: c["image_processor"].update(
            image_processor_type="Evil", auto_map={"AutoImageProcessor": "evil.Evil"}
        ),
    ),
    "feature extractor": (
        "processor_config.json",
        lambda c: c["feature_extractor"].update(
            feature_extractor_type="Evil", auto_map={"AutoFeatureExtractor": "evil.Evil"}
        ),
    ),
    "generation": ("generation_config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Evil"})),
    "kernel": ("config.json", lambda c: c["thinker_config"].update(_attn_implementation="evil/kernel")),
}


def loads(folder, out):
    """Each way in which this project loads a model's folder."""

    def engine():
        with open_engine(folder, "transformers"):
            pass

    yield lambda: load_processor(folder)
    yield lambda: load_thinker(folder)
    yield lambda: thinker_config(folder)
    yield lambda: export(folder, out)
    yield engine
    yield lambda: open_judge(f"llm:{folder}", LABELS, engine=EngineSettings(engine="transformers")).judge(
        ["he smiles."]
    )


@pytest.mark.parametrize("place", CODE)
def test_code_of_a_folder_is_never_run_nor_asked_about(place, model, copy, tmp_path, monkeypatch, capsys):
    folder, mark = copy(model), tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\nclass Evil:\n    pass\ngenerate = Evil\n"
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    file, change = CODE[place]
    if not (folder / file).exists():  # the sub-processors of other versions stand in files of their own
        pytest.skip(f"no {file}")
    edit(folder / file, change)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    for load in loads(folder, tmp_path / "out"):
        try:
            load()
        except InputError as error:
            assert str(folder) in str(error)
    assert not mark.exists() and "y/N" not in "".join(capsys.readouterr()) and sys.stdin.tell() == 0


def test_each_call_that_loads_says_that_no_code_is_run():
    """Or hands on options that say so: without a word, transformers asks on standard input."""
    calls = []
    for path in (file for folder in ("migr", "stages", "eval", "reward") for file in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and re.match(
                r"(Auto\w+|kind)\.from_pretrained$|LLM$", ast.unparse(node.func)
            ):
                calls.append(call := ast.unparse(node))
                assert re.search(r"trust_remote_code=False|\*\*(OURS_ALONE|safe|own|options)", call), f"{path}: {call}"
    assert len(calls) >= 8


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_judges_folder_is_never_run_nor_asked_about(file, classifier, copy, tmp_path, monkeypatch, capsys):
    folder, mark = copy(classifier), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil:\n    pass\n")
    maps = {
        "AutoModelForSequenceClassification": "evil.Evil",
        "AutoConfig": "evil.Evil",
        "AutoTokenizer": ["evil.Evil"] * 2,
    }
    edit(folder / file, lambda c: c.update(auto_map=maps, model_type="evil", tokenizer_class="Evil"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    with suppress(InputError):
        open_judge(folder, LABELS).judge(["he smiles."])
    assert not mark.exists() and "y/N" not in "".join(capsys.readouterr())


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, model, adapter, classifier, copy):
    folder, lora, judge = copy(model), copy(adapter), copy(classifier)
    name = "thinker.model.layers.1.mlp.up_proj.weight"
    tensors(folder / "model.safetensors", lambda w: w[name][0].fill_(value))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight are not finite"):
        load_thinker(folder)
    tensors(lora / "adapter_model.safetensors", lambda w: next(iter(w.values()))[0].fill_(value))
    with pytest.raises(InputError, match=r"lora: the weights of .* are not finite"):
        load_thinker(model, adapter=lora)
    tensors(judge / "model.safetensors", lambda w: w["classifier.weight"][0].fill_(value))
    with pytest.raises(InputError, match=r"classifier\.weight are not finite"):
        open_judge(judge, LABELS).judge(["he smiles."])


def test_a_classifier_without_its_own_weights_does_not_judge_at_random(classifier, copy):
    folder = copy(classifier)
    tensors(folder / "model.safetensors", lambda w: [w.pop(name) for name in list(w) if name.startswith("classifier")])
    with pytest.raises(InputError, match=r"2 weights are missing, for example classifier\.bias"):
        open_judge(folder, LABELS).judge(["he smiles."])


BROKEN = {
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "zeros": lambda text: bytes(len(text)),
    "a header of 2^64 bytes": lambda text: b"\xff" * 8 + text[8:],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_weights_are_one_line(kind, model, adapter, classifier, copy):
    folder, lora, judge = copy(model), copy(adapter), copy(classifier)
    for file in (folder / "model.safetensors", lora / "adapter_model.safetensors", judge / "model.safetensors"):
        file.write_bytes(BROKEN[kind](file.read_bytes()))
    with pytest.raises(InputError, match=rf"{folder}(: the model|/model\.safetensors: the weights) cannot be"):
        load_thinker(folder)
    with pytest.raises(InputError, match=f"{lora}: the adapter does not fit"):
        load_thinker(model, adapter=lora)
    with pytest.raises(InputError, match=rf"{judge}(:|/model\.safetensors: the weights) cannot be"):
        open_judge(judge, LABELS).judge(["he smiles."])


def test_pickled_weights_are_not_loaded(model, copy):
    folder = copy(model)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for backend in ("transformers", "vllm"):
        with pytest.raises(InputError, match=str(folder)):
            open_engine(folder, backend)


# Configurations of another shape

SHAPES = {
    "a list": lambda file: file.write_text("[1]"),
    "a number": lambda file: file.write_text("3"),
    "deep": lambda file: file.write_text("[" * 100_000),
    "no layers": lambda file: edit(file, lambda c: c["thinker_config"]["text_config"].update(num_hidden_layers=0)),
    "no heads": lambda file: edit(file, lambda c: c["thinker_config"]["text_config"].update(num_attention_heads=0)),
    "words": lambda file: edit(file, lambda c: c["thinker_config"]["text_config"].update(hidden_size="x")),
    "null": lambda file: edit(file, lambda c: c["thinker_config"]["text_config"].update(max_position_embeddings=None)),
    "list for text": lambda file: edit(file, lambda c: c["thinker_config"].update(text_config=[1])),
    "activation": lambda file: edit(file, lambda c: c["thinker_config"]["text_config"].update(hidden_act="os.system")),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_configuration_of_another_shape_is_one_line(kind, model, copy):
    folder = copy(model)
    SHAPES[kind](folder / "config.json")
    with pytest.raises(InputError, match=str(folder)):
        load_thinker(folder)
    with pytest.raises(InputError, match=str(folder)):
        open_engine(folder, "transformers")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("feature_extractor", "n_fft", 10**9),
        ("feature_extractor", "hop_length", 0),
        ("video_processor", "patch_size", "x"),
        ("video_processor", "image_std", [0.0, 0.0, 0.0]),
        ("video_processor", "image_mean", [float("nan")] * 3),
        ("image_processor", "merge_size", -1),
    ],
)
def test_a_processor_that_makes_nonsense_or_takes_all_memory_is_refused(part, key, value, model, copy):
    folder = copy(model)
    edit(folder / "processor_config.json", lambda c: c[part].update({key: value}))
    with pytest.raises(InputError, match=r"processor_config\.json: "):
        load_processor(folder)


# Adapters


def layer(name):
    return f"base_model.model.model.layers.0.self_attn.{name}.lora_A.weight"


def half(weights):
    for name in list(weights)[::2]:
        del weights[name]


def renamed(weights):
    for name in list(weights):
        weights[name.replace("self_attn", "attention")] = weights.pop(name)


def without_prefix(weights):
    for name in list(weights):
        weights[name.removeprefix("base_model.model.")] = weights.pop(name)


MISFITS = {
    "half": half,
    "one missing": lambda weights: weights.pop(layer("q_proj")),
    "another layer": lambda weights: weights.update(
        {layer("q_proj").replace("layers.0", "layers.99"): weights.pop(layer("q_proj"))}
    ),
    "renamed": renamed,
    "without prefix": without_prefix,
    "empty": lambda weights: weights.clear(),
    "one more": lambda weights: weights.update({layer("x_proj"): torch.zeros(2, 2)}),
    "another shape": lambda weights: weights.update({layer("q_proj"): torch.zeros(2, 3)}),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_an_adapter_must_fit_exactly(kind, model, adapter, copy, tmp_path):
    folder = copy(adapter)
    tensors(folder / "adapter_model.safetensors", MISFITS[kind])
    for trainable in (False, True):
        with pytest.raises(InputError, match=str(folder)):
            load_thinker(model, adapter=folder, trainable=trainable)
    with pytest.raises(InputError, match=str(folder)):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def of_a_whole_model(weights):
    for name in list(weights):
        weights[name.replace("model.model.", "model.thinker.model.", 1)] = weights.pop(name)


def test_report_6_names_of_another_trainer_are_no_silent_no_op(model, adapter, copy, tmp_path):
    folder = copy(adapter)
    tensors(folder / "adapter_model.safetensors", of_a_whole_model)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for use in (lambda: load_thinker(model, adapter=folder), lambda: export(folder, tmp_path / "out")):
        with pytest.raises(InputError, match=r"does not fit the model: .* is missing in it"):
            use()


def without(factor):
    """Sets all these factors to zero."""
    return lambda weights: weights.update({name: 0 * weight for name, weight in weights.items() if factor in name})


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_report_6_an_adapter_that_changes_nothing_is_refused(factor, model, adapter, copy, tmp_path):
    folder = copy(adapter)
    tensors(folder / "adapter_model.safetensors", without(factor))
    for use in (
        lambda: load_thinker(model, adapter=folder),
        lambda: load_thinker(model, adapter=folder, trainable=True),
        lambda: export(folder, tmp_path / "out"),
    ):
        with pytest.raises(InputError, match="the adapter changes nothing"):
            use()
    assert not (tmp_path / "out").exists()


def test_report_6_an_adapter_of_the_towers_is_not_trained(model, tmp_path):
    plain = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    get_peft_model(load_thinker(model), plain).save_pretrained(tmp_path, save_embedding_layers=False)
    assert load_thinker(model, adapter=tmp_path) is not None  # it can be merged
    with pytest.raises(InputError, match=r"adapts the towers \(.*audio_tower"):
        load_thinker(model, adapter=tmp_path, trainable=True)


SPOILT = {
    "empty": (lambda weights: weights.clear(), "is missing in it"),
    "half": (half, "is missing in it"),
    "another shape": (
        lambda weights: weights.update({layer("q_proj"): torch.zeros(0)}),
        r"has the shape \[0\], the model needs \[2, ",
    ),
    "not finite": (lambda weights: weights[layer("q_proj")].fill_(float("nan")), "not finite"),
    "as it began": (without("lora_B"), "the training has changed nothing"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_report_32_a_saved_adapter_is_read_back_before_its_run_is_done(kind, model, adapter, copy):
    trained = load_thinker(model, adapter=adapter, trainable=True)
    assert check_saved(adapter, trained) and not check_saved(adapter, trained, start=adapter)
    folder = copy(adapter)
    change, message = SPOILT[kind]
    tensors(folder / "adapter_model.safetensors", change)
    with pytest.raises(InputError, match=message):
        check_saved(folder, trained, start=adapter)


SETTINGS = {
    "targets that are fewer": {"target_modules": ["q_proj"]},
    "targets of exponential time": {"target_modules": "(([a-z_.0-9])+)+!"},
    "no expression": {"target_modules": "(("},
    "nothing": {"target_modules": "nothing"},
    "ranks by an expression": {"rank_pattern": {"(([a-z_.0-9])+)+!": 2}},
    "ranks that are words": {"rank_pattern": {"q_proj": "x"}},
    "another kind": {"peft_type": "IA3"},
    "dora": {"use_dora": True},
    "a module to import": {"megatron_config": {"a": 1}, "megatron_core": "evil"},
    "layers again": {"layer_replication": [[0, 1], [0, 1]]},
    "rank": {"r": 10**9},
    "rank of words": {"r": "x"},
    "one layer": {"layers_to_transform": [0]},
    "scale": {"lora_alpha": None},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_adapters_settings_are_plain_and_true(kind, model, adapter, copy):
    folder = copy(adapter)
    edit(folder / "adapter_config.json", lambda c: c.update(SETTINGS[kind]))
    with pytest.raises(InputError, match=str(folder)):
        load_thinker(model, adapter=folder)
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(InputError, match=str(folder)):
        load_thinker(model, adapter=folder)


def test_an_honest_foreign_expression_is_taken(model, adapter, copy):
    folder = copy(adapter)
    expression = r".*model\.layers\.\d+\.(self_attn|mlp)\..*_proj"
    edit(folder / "adapter_config.json", lambda c: c.update(target_modules=expression))
    own, other = (load_thinker(model, adapter=path).state_dict() for path in (adapter, folder))
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


def test_an_adapter_never_makes_anybody_ask_the_hub(adapter, copy, monkeypatch):
    folder = copy(adapter)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked somebody"))
    edit(folder / "adapter_config.json", lambda c: c.update(base_model_name_or_path="evil-org/evil-model"))
    with pytest.raises(InputError, match="evil-org/evil-model is not on this machine"):
        adapter_base(folder)


def test_an_export_takes_away_what_a_killed_one_left_and_nothing_else(model, tmp_path):
    dead, alive = tmp_path / ".out.aaaaaaaa", tmp_path / ".out.bbbbbbbb"
    for folder in (dead, alive):
        (folder / "new").mkdir(parents=True)
        (folder / ".lock").touch()
    with (alive / ".lock").open("r+b") as file:
        assert lock(file.fileno(), wait=False)
        export(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "out"]


# How a model answers


@pytest.mark.parametrize(
    "own",
    [
        {"no_repeat_ngram_size": 2},
        {"num_beams": 4},
        {"sequence_bias": [[[50], 10.0]]},
        {"exponential_decay_length_penalty": [5, 2.0]},
        {"watermarking_config": {"bias": 10.0}},
        {"repetition_penalty": 5.0},
        {"min_length": 30},
        {"forced_eos_token_id": 5},
        {"bad_words_ids": [[50]]},
    ],
    ids=lambda own: next(iter(own)),
)
def test_the_models_own_generation_settings_do_not_decide(own, model, copy):
    folder = copy(model)
    answers = []
    for _ in range(2):
        with open_engine(folder, "transformers", max_new_tokens=12) as engine:
            prompt = render_prompt(engine.task.inputs.processor, "Which emotion?", False, False)
            answers.append([g.token_ids for g in engine.generate([Request("a", prompt), Request("b", prompt + "x")])])
        edit(folder / "generation_config.json", lambda c: c.update(own))
    assert answers[0] == answers[1]
    GenerationConfig.from_pretrained(folder)  # it is one that transformers takes


def test_a_digest_covers_every_file_that_is_read(model, copy):
    folder = copy(model)
    before = {model_digest(folder)}
    # nothing here reads the talker's voices, which transformers' whole model asks for
    files = [file for file in folder.iterdir() if file.suffix != ".md" and file.name != "spk_dict.pt"]
    assert {"tokenizer.json", "chat_template.jinja", "model.safetensors"} <= {file.name for file in files}
    for count, file in enumerate(files, 2):
        text = file.read_bytes()
        file.write_bytes(text + b" ")
        before.add(model_digest(folder))
        assert len(before) == count, file.name
        file.write_bytes(text)
        os.utime(file, (0, 0))


def test_nothing_is_sent_unless_the_user_turns_it_on():
    code = (
        "import huggingface_hub.constants as c, os, sys; before = c.HF_HUB_DISABLE_TELEMETRY; import migr.omni;"
        "print(before, c.HF_HUB_DISABLE_TELEMETRY, os.environ['VLLM_NO_USAGE_STATS'])"
    )
    environ = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "TRACK" not in name}
    for wish, expected in ((None, "False True 1"), ("0", "False False 1")):
        own = environ | ({"HF_HUB_DISABLE_TELEMETRY": wish} if wish else {})
        made = subprocess.run(
            [sys.executable, "-c", code], env=own, cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert made.stdout.split("\n")[0] == expected
