"""What `stages/sentiment.py` reads from its command line and YAML."""

from dataclasses import asdict, dataclass, field
from typing import Any

from migr.errors import InputError

ENCODERS = ("attention", "bilstm")
FUSIONS = {"dual-gate": "dual-gate", "experts": "experts", "concat": "concatenation"}  # -> `importance.store.NETWORKS`
FORMS = ("repeat", "affine", "free")
HEADS = ("value", "llm")


@dataclass
class RunSettings:
    """The run."""

    data: str = field(default="", metadata={"help": "folder of stages/features.py"})
    out: str = field(default="", metadata={"help": "folder for the run; a seed's files are in OUT/seed-<seed>"})
    seeds: list[int] = field(default_factory=lambda: [1111], metadata={"help": "one fit each"})
    modalities: list[str] = field(
        default_factory=list, metadata={"help": "of text, video, audio (default: all there are)"}
    )
    ablations: bool = field(default=True, metadata={"help": "measure what modalities, experts and pseudo tokens do"})
    overwrite: bool = field(default=False, metadata={"help": "discard a run of another configuration in out"})


@dataclass
class NetworkSettings:
    """The network."""

    fusion: str = field(
        default="dual-gate", metadata={"help": "dual-gate (AGFN), experts (EGMF), concat", "choices": tuple(FUSIONS)}
    )
    head: str = field(
        default="value", metadata={"help": "value, or llm: a language model writes the answer", "choices": HEADS}
    )
    encoder: str = field(default="attention", metadata={"help": "of frames", "choices": ENCODERS})
    hidden: int = field(default=64, metadata={"help": "size of a token, a multiple of 8"})
    tokens: int = field(default=4, metadata={"help": "tokens a modality that experts fuse"})
    dropout: float = field(default=0.2, metadata={"help": "in encoders and fusion"})
    unimodal_weight: float = field(default=0.5, metadata={"help": "value: of the unimodal heads' loss"})
    adversarial_weight: float = field(default=0.0, metadata={"help": "value: of virtual adversarial training"})
    adversarial_radius: float = field(default=0.1, metadata={"help": "value: its radius, in deviations of a token"})
    model: str = field(default="", metadata={"help": "llm: folder of a causal language model, or of a Qwen-Omni"})
    pseudo_tokens: int = field(default=4, metadata={"help": "llm: how many"})
    form: str = field(
        default="repeat", metadata={"help": "llm: repeat (EGMF), affine (MSE-Adapter), free", "choices": FORMS}
    )
    transcript: bool = field(default=True, metadata={"help": "llm: the prompt has the transcript"})
    grid: float = field(default=0.1, metadata={"help": "llm: step of the scores that may be answered"})
    median: bool = field(default=True, metadata={"help": "llm: a score is the median of the answers, else the mean"})
    lora_r: int = field(default=16, metadata={"help": "llm: LoRA rank; 0 leaves the language model frozen"})
    lora_alpha: int = field(default=32, metadata={"help": "llm: LoRA scale"})
    auxiliary_weight: float = field(default=0.0, metadata={"help": "llm: weight of the fusion network's own loss"})
    dtype: str = field(
        default="auto", metadata={"help": "llm: weights' type", "choices": ("auto", "float32", "bfloat16")}
    )

    def check(self) -> None:
        """Raise InputError for what cannot be, before any long work."""
        if self.head == "llm" and not self.model:
            raise InputError("--model is missing: --head llm needs a language model")
        if self.head == "value" and self.model:
            raise InputError("--model belongs to --head llm")
        if self.hidden < 8 or self.hidden % 8 or self.tokens < 1 or self.pseudo_tokens < 1:
            raise InputError("--hidden must be a multiple of 8, --tokens and --pseudo_tokens at least 1")
        if self.lora_r < 0 or not 0 <= self.dropout < 1:
            raise InputError("--lora_r must be 0 or more, --dropout in [0, 1)")


@dataclass
class FitSettings:
    """The fit, by transformers' names."""

    num_train_epochs: float = field(default=30.0, metadata={"help": "at most"})
    patience: int = field(default=8, metadata={"help": "epochs without a better valid figure before the fit ends"})
    selection_epochs: int = field(
        default=1, metadata={"help": "epochs whose valid figures are averaged to choose one, the last of them"}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "clips a step and process"})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "clips at a time"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches a step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "the peak"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "of transformers"})
    warmup_steps: float = field(default=0.1, metadata={"help": "steps, or below 1 their share"})
    weight_decay: float = field(default=0.01, metadata={"help": "spares biases, norms and the gates' balance"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are cut to it"})
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "llm: less memory, more time"})
    deepspeed: str | None = field(default=None, metadata={"help": "its JSON file; ZeRO-2 at most"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that read batches"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints that are kept, the best among them"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bar; a line an epoch instead"})

    def training_arguments(
        self, folder: str, seed: int, figure: str, more_is_better: bool, unused: bool = False
    ) -> Any:
        """transformers' own: the epoch is chosen on valid by this figure; `unused`: some weights get no gradient."""
        if self.selection_epochs < 1:
            raise InputError(f"--selection_epochs {self.selection_epochs}: it must be at least 1")
        import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

        import torch  # isort: skip
        from transformers import TrainingArguments

        alone = not torch.accelerator.is_available()
        if alone and self.bf16:
            raise InputError("settings of the fit: bf16 needs a GPU, and there is none; --no-bf16 fits in float32")
        ours = ("patience", "selection_epochs", "gradient_checkpointing")
        values = {key: value for key, value in asdict(self).items() if key not in ours}
        try:
            return TrainingArguments(
                output_dir=folder,
                seed=seed,
                data_seed=seed,
                metric_for_best_model=figure if self.selection_epochs == 1 else f"{figure}_mean{self.selection_epochs}",
                greater_is_better=more_is_better,
                eval_strategy="epoch",
                save_strategy="epoch",
                logging_strategy="epoch",
                load_best_model_at_end=True,
                remove_unused_columns=False,
                logging_nan_inf_filter=False,
                dataloader_pin_memory=False,
                report_to="none",
                ddp_find_unused_parameters=unused,
                use_cpu=alone,  # else processes without a GPU do not find each other
                **values,
            )
        except ValueError as error:
            raise InputError(f"settings of the fit: {' '.join(str(error).split())}") from None
