"""Tiny judges that have learned something, and a server that replies as a script says; built where they are needed."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from migr.files.records import read_json
from migr.judge import CUE_WORDS, LexiconJudge
from migr.judge.prompt import filled, prompt_for
from migr.text.labels import label_set

LABELS = label_set("dfew")
LEXICON = LexiconJudge(LABELS)
SAYS = {
    "He smiles.": "Happy",
    "She weeps.": "<think>tears</think> sad",
    "A shout.": "```\nangry\n```",
    "Hm.": "who knows",
}


def word_tokenizer(folder, words):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_max_length=30)
    fast.save_pretrained(folder)
    return fast


def build_roberta(folder, names, **options):
    import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

    # isort: split
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = word_tokenizer(folder, " ".join(CUE_WORDS.values()).split())
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, hidden_dropout_prob=0.0,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **options,
    )  # fmt: skip
    return tokenizer, RobertaForSequenceClassification(config)


def build_classifier(folder):
    """A tiny RoBERTa that has learned the cue words; its labels are those of the usual Ekman classifiers."""
    import torch

    names = ["joy", "sadness", "neutral", "anger", "surprise", "disgust", "fear", "others"]
    tokenizer, model = build_roberta(folder, names)
    texts = [(word, i) for i, cues in enumerate(CUE_WORDS.values()) for word in cues.split()]
    batch = tokenizer([word for word, _ in texts], return_tensors="pt", padding=True)
    target = torch.tensor([i for _, i in texts])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch).logits, target).backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def build_text_model(folder, says=SAYS, labels=LABELS):
    """A tiny causal language model with a tokenizer of its own that has learned what it says to each text."""
    import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

    # isort: split
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([prompt_for(labels), *says, *says.values()], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")  # noqa: S106
    fast.chat_template = "<|user|>{{ messages[0]['content'] }}<|assistant|>"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(fast), **sizes, **heads, tie_word_embeddings=True))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    rows = []
    for text, reply in says.items():
        chat = fast.apply_chat_template([{"role": "user", "content": filled(prompt_for(labels), text)}], tokenize=False)
        start, end = (fast(part, add_special_tokens=False)["input_ids"] for part in (chat, reply + "<|end|>"))
        rows.append((torch.tensor(start + end), torch.tensor([-100] * len(start) + end)))
    ids, targets = (
        torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=padding)
        for column, padding in zip(zip(*rows, strict=True), (0, -100), strict=True)
    )
    for _ in range(150):
        loss = model(input_ids=ids, labels=targets).loss  # causal: the padding behind a text does not matter
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    model.save_pretrained(folder)
    return folder


class Server:
    """An HTTP server on loopback that gives the scripted replies, one a request, the last one for ever.

    A reply is (status, content), or a function of the request's body that gives one; it may wait, or `die()`.
    """

    def __init__(self, *script, port=0):
        self.script, self.seen, self.lock = list(script), [], threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.seen.append((dict(self.headers), body))
                    step = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                status, content = step(body) if callable(step) else step
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                with suppress(OSError):  # who asked may have gone
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(content)))
                    self.send_header("retry-after-ms", "10")
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def die(self):
        """Refuse connections from now on."""
        self.http.shutdown()
        self.http.socket.close()

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def free_port():
    """A port of loopback that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def says(content, tokens=(100, 5), finish="stop"):
    """A reply of the protocol."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    message = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return 200, {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [message],
        "usage": usage,
    }


# The imports are mended first, in the engine's process too; a class that is registered needs no look by a subprocess.
SERVE = """
import migr.omni
import runpy
from vllm.model_executor.models.registry import ModelRegistry

ModelRegistry.register_model("NAME", ModelRegistry.models["NAME"].load_model_cls())
if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
"""


@contextmanager
def serve(model, folder):
    """vLLM's own server for a text model on loopback, which it calls `tiny`: its URL. Its files go to `folder`."""
    port, start = free_port(), folder / "serve.py"
    start.write_text(SERVE.replace("NAME", read_json(model / "config.json")["architectures"][0]))
    command = [sys.executable, str(start), "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "tiny", "--enforce-eager", "--dtype", "float32"]
    command += ["--max-num-batched-tokens", "4096", "--no-enable-chunked-prefill"]
    # random weights would put blanks between the braces for ever
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)
