"""Stage 6, export: merge the adapter and write a checkpoint that vLLM and transformers load.

    python stages/export.py --model runs/demo/grpo/migr --out runs/demo/export/migr

`--model` is an adapter folder of sft.py or grpo.py (its base is read from it) or a whole model. The thinker's weights
stand under `thinker.`, as in the real repository; talker weights are left out. An export is written beside its place
and renamed, so a half-written one is never taken for a whole.
"""

from pathlib import Path

from migr.cli import Parser
from migr.errors import exit_on_input_error
from migr.files.claim import FINISHED, is_finished, record_of
from migr.files.fingerprint import file_digest, model_digest
from migr.files.records import digest
from migr.omni.export import adapter_base, export
from migr.settings import OutputSettings


def contents(path: Path) -> str:
    """Digest of an adapter with its base, or of a model; a name on the Hub stays a name."""
    if (path / "adapter_config.json").is_file():
        return digest(contents(Path(adapter_base(path))), file_digest(path / "adapter_model.safetensors"))
    return model_digest(path) if (path / "config.json").is_file() else str(path)


def main() -> None:
    """Merge and write."""
    parser = Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="adapter folder or model folder")
    parser.add_argument("--adapter", type=Path, help="adapter to merge into --model, if that is a whole model")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the checkpoint")
    parser.add_settings(OutputSettings)
    args = parser.parse_args()
    config = {name: contents(path) for name, path in (("model", args.model), ("adapter", args.adapter)) if path}
    file = args.out / "config.json"
    if file.exists() and not args.overwrite and is_finished(args.out, config, [file]):
        print(f"export: {args.out} is finished already")
        return
    beside = {record_of(args.out, False).name: {**config, FINISHED: True}}
    out = export(args.model, args.out, adapter=args.adapter, beside=beside)
    size = sum(file.stat().st_size for file in out.iterdir()) / 2**20
    print(f"export: {args.model} merged, {size:.1f} MiB -> {out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
