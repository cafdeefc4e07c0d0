"""Draw the curves of trainings: rewards, inconsistency of what is sampled, loss, KL, lengths.

    python stages/curves.py runs/demo/grpo/migr                               one run, also while it goes on
    python stages/curves.py runs/demo/grpo/* --out runs/demo/grpo/curves.png  runs side by side

Reads what the trainer keeps in its output folder; docs/training.md says what to look for. A run that goes on shows what
it had logged at its last checkpoint; for live curves: `report_to: tensorboard` or `wandb` (extra `track`).
"""

from pathlib import Path

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.training.history import plot, read_history, reward_line, warnings


def main() -> None:
    """Read the logs, draw, say what stands out."""
    # Config
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="output_dir of stages/sft.py or stages/grpo.py")
    parser.add_argument("--out", type=Path, help="PNG to write (default: curves.png in the first run)")
    args = parser.parse_args()
    names = [run.resolve().name for run in args.runs]
    if len(set(names)) < len(names):
        raise InputError("two runs have the same name: give them other folders, or draw them one by one")

    # Data
    histories = {name: read_history(run) for name, run in zip(names, args.runs, strict=True)}

    # Run, save
    out = args.out or args.runs[0] / "curves.png"
    plot(histories, out)
    for name, history in histories.items():
        line = reward_line(history)
        print(f"{name}: step {history[-1]['step']}" + (f", rewards: {line}" if line else ""))
        for sentence in warnings(history):
            print(f"  note: {sentence}")
    print(f"curves: {len(names)} runs -> {out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
