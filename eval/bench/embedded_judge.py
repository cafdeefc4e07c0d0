"""Fit the embedded judge anew, as the shipped one was fitted.

    python eval/bench/embedded_judge.py --out embedded.safetensors                two minutes on one idle core
    python eval/judges.py embedded lexicon --texts tests/data/judge_dev.jsonl     its figures on texts to tune on

The same command makes the same file on the same kind of machine. The texts are
`migr/judge/data/embedded_texts.jsonl`, written for this and apart from the shipped texts that judges are measured on:
clauses about faces, voices, bodies and words, whole explanations, words that name emotions, and patterns. Each epoch
sees all whole texts twice and fresh compositions: clauses alone, with a conclusion, contrasted with clauses of
another emotion, or beside negated ones. Low-rank changes (PEFT) of the encoder's upper layers and a linear head on
the mean of its tokens are learned with cross-entropy over the eleven emotions.
"""

import random
import re
from pathlib import Path
from typing import Any

from migr.cli import Parser
from migr.errors import exit_on_input_error
from migr.files.records import Row, read_jsonl
from migr.judge.embedded import ADAPTED, ALPHA, EMOTIONS, TEXTS, encoder_folder

RANK, BATCH, WHOLE, HEAD_RATE, RATE = 8, 32, 2, 5e-3, 1.5e-3
PATTERNS = ("conclusion", "contrast", "negation", "opening")
_SHE = (("himself", "herself"), ("him", "her"), ("his", "her"), ("he", "she"), ("He", "She"), ("His", "Her"))
_PEOPLE = {
    "he": ("the man", "the boy", "the speaker", "the old man", "the actor", "the father", "this person"),
    "she": ("the woman", "the girl", "the speaker", "the young woman", "the actress", "the mother", "this person"),
}
_OTHERS = ("the man next to him", "the child in the background", "his friend", "the woman opposite", "the other one")


class Composer:
    """Draws texts with a known emotion from clauses, words and patterns."""

    def __init__(self, rows: list[Row], seed: int) -> None:
        self.draw = random.Random(seed)
        self.patterns = {part: [row["text"] for row in rows if row["part"] == part] for part in PATTERNS}
        parts = ("clause", "adjective", "noun", "absent")
        self.words = {(part, e): [r["text"] for r in rows if (r["part"], r.get("emotion")) == (part, e)]
                      for part in parts for e in EMOTIONS}  # fmt: skip

    def word(self, part: str, emotion: str) -> str:
        """A clause, an adjective, a noun, or what is absent, of an emotion."""
        return self.draw.choice(self.words[part, emotion])

    def text(self) -> tuple[str, int]:
        """A text and the place of its emotion. The four that MAFW has beyond DFEW are rarer."""
        draw = self.draw
        emotion = draw.choices(EMOTIONS, [1.0] * 7 + [0.4] * 4)[0]
        other = draw.choice([e for e in (EMOTIONS[:7] if draw.random() < 0.85 else EMOTIONS) if e != emotion])
        third = draw.choice([e for e in EMOTIONS[:7] if e not in (emotion, other)])
        own = draw.sample(self.words["clause", emotion], 3)
        values = self._values(emotion, other, third, own)
        kind = draw.random()
        conclusion = draw.choice(self.patterns["conclusion"]).format(**values)
        if kind < 0.22:
            text = ". ".join(map(_capital, own[: draw.choice([1, 2, 2, 3])])) + "."
        elif kind < 0.36:
            joined = _capital(own[0]) + (". " if draw.random() < 0.5 else ", and ") + own[1] + ". " + conclusion
            text = f"{conclusion} {_capital(own[0])}." if draw.random() < 0.3 else joined
        elif kind < 0.42:
            text = conclusion
        else:
            text = draw.choice(self.patterns["contrast" if kind < 0.72 else "negation"]).format(**values)
            more = draw.random()
            if more < 0.25:
                text += f" {conclusion}"
            elif more < 0.45:
                text += f" {_capital(own[2])}."
            elif more < 0.55:
                text = f"{_capital(own[2])}. {text}"
        if draw.random() < 0.12:
            text = f"{draw.choice(self.patterns['opening']).strip()} {text[0].lower()}{text[1:]}"
        return self._person(text), EMOTIONS.index(emotion)

    def _values(self, emotion: str, other: str, third: str, own: list[str]) -> dict[str, str]:
        against = self.draw.choice([clause for clause in self.words["clause", other] if not clause.startswith('"')])
        other_clauses = [
            c for c in self.words["clause", other] if c.startswith("he ") and not re.search(r" (him|his|he)\b", c)
        ]
        values = {
            **{"y": own[0], "y2": own[1], "x": against, "he": "he", "He": "He", "himself": "himself"},
            "o": f"{self.draw.choice(_OTHERS)} {self.draw.choice(other_clauses)[3:]}",
            **{"n": self.word("absent", other), "n2": self.word("absent", third)},
        }
        for end, of in (("", emotion), ("y", emotion), ("x", other), ("z", third)):
            values |= {f"adj{end}": self.word("adjective", of), f"noun{end}": self.word("noun", of)}
        return values | {key.upper(): _capital(values[key]) for key in ("x", "y", "o", "n")}

    def _person(self, text: str) -> str:
        """The clauses are about "him": about "her" in half of the texts, named once in half."""
        word = self.draw.choice(("he", "she"))
        for he, she in _SHE if word == "she" else ():
            text = re.sub(rf"\b{he}\b", she, text)
        if self.draw.random() < 0.5:
            name = self.draw.choice(_PEOPLE[word])
            pattern = rf"\b({word}|{_capital(word)})\b"
            text = re.sub(pattern, lambda m: _capital(name) if m[1][0].isupper() else name, text, count=1)
        return text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def fit(rows: list[Row], seed: int, epochs: int, size: int) -> dict[str, Any]:
    """The tensors of `migr.judge.embedded.FITTED`; prints the mean loss of each epoch."""
    import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

    # isort: split
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    from migr.omni.checks import OURS_ALONE
    from migr.omni.load import quiet

    torch.set_num_threads(1)  # more would add up in another order
    torch.manual_seed(seed)
    folder = encoder_folder()
    with quiet():
        own: dict[str, Any] = {"local_files_only": True, **OURS_ALONE}
        tokenizer = AutoTokenizer.from_pretrained(folder, **own)
        encoder = AutoModel.from_pretrained(folder, use_safetensors=True, **own)
    adapter = LoraConfig(r=RANK, lora_alpha=int(ALPHA * RANK), lora_dropout=0.05, target_modules=ADAPTED)
    model = get_peft_model(encoder, adapter)
    head = torch.nn.Linear(encoder.config.hidden_size, len(EMOTIONS))
    rates = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": RATE}]
    optimizer = torch.optim.AdamW([*rates, {"params": head.parameters(), "lr": HEAD_RATE}], weight_decay=0.01)
    composer = Composer(rows, seed)
    whole = [(row["text"], EMOTIONS.index(row["emotion"])) for row in rows if row["part"] == "text"]
    steps = epochs * -(-(size + WHOLE * len(whole)) // BATCH)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, 20)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(epochs):
        samples = [composer.text() for _ in range(size)] + whole * WHOLE
        composer.draw.shuffle(samples)
        samples.sort(key=lambda sample: len(sample[0]) // 20)  # alike lengths together
        batches = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
        composer.draw.shuffle(batches)
        total = 0.0
        for batch in batches:
            tokens = tokenizer([t for t, _ in batch], return_tensors="pt", padding=True, truncation=True, max_length=96)
            states, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None].float()
            pooled = torch.nn.functional.dropout((states * mask).sum(1) / mask.sum(1), 0.2)
            truth = torch.tensor([emotion for _, emotion in batch])
            loss = torch.nn.functional.cross_entropy(head(pooled), truth, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warm.step()
            cool.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(batches):.3f}", flush=True)
    return tensors(model.state_dict(), head.state_dict())


def tensors(adapter: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """The adapter and the head under the names, and as half precision, that the judge loads."""
    named = {f"head.{name}": value for name, value in head.items()}
    for name, value in adapter.items():
        if ".lora_A." in name or ".lora_B." in name:
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            named[f"{module}.{rest[0].lower()}"] = value
    return {name: value.half().contiguous() for name, value in named.items()}


def main() -> None:
    """Fit and save."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the fitted file (*.safetensors)")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="clauses, whole texts, words and patterns")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--compositions", type=int, default=1000, help="fresh ones an epoch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from safetensors.torch import save_file

    fitted = fit(read_jsonl(args.texts, ("part", "text")), args.seed, args.epochs, args.compositions)
    save_file(fitted, args.out)
    print(f"embedded judge: {len(fitted)} tensors -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
