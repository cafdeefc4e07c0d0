"""What users write for commands: labels, configurations, lines of a pipeline."""

from migr.text.labels import label_set
from readers.content import (
    document,
    later,
    reader,
)

READERS = {
    "labels": reader(
        "labels.txt",
        b"extends: dfew\nhappy: blissful\n# a remark\ncalm: quiet\n",
        "bytes",
        lambda f: label_set(str(f / "labels.txt")),
    ),
    "configuration": reader(
        "c.yaml",
        b"include: d.yaml\nseed: 1\nrewards: [format, accuracy]\nnested: {a: 1}\n",
        "bytes",
        lambda f: later("migr.cli", "read_config")(f / "c.yaml"),
        {"d.yaml": b"limit: 3\n"},
    ),
    "pipeline": reader(
        "p.txt",
        b"data --source dfew --fold {fold} --out {out}/clips\nsft --config x \\\n  --seed 1 # why\n",
        "bytes",
        lambda f: later("stages.folds", "commands")(f / "p.txt", {"fold": "1", "out": "o"}),
    ),
    "reward parameters": reader(
        "p",
        document({"format": {"a": 1}}),
        "json",
        lambda f: later("reward", "read_parameters")((f / "p").read_bytes().decode(errors="replace")),
    ),
}
