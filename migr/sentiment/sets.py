"""The data sets of the sentiment field: their labels, ranges, published counts and files, and their prompts."""

from dataclasses import dataclass, field

from migr.errors import InputError

SPLITS = ("train", "valid", "test")
MODALITIES = ("text", "video", "audio")  # the order of their columns everywhere; the field calls the second one vision

# MELD's README numbers its labels so; CHERMA's loader (sunjunaimer/LFMIM) numbers its own.
MELD = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
CHERMA = ("愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇")


@dataclass(frozen=True)
class Prompt:
    """What surrounds a clip's pseudo tokens: `prefix` T [transcript] `suffix` `task`, then the answer.

    The wording follows MSE-Adapter's (arXiv 2502.12478); the task names the range or the labels.
    """

    prefix: str
    suffix: str
    task: str


@dataclass(frozen=True)
class SentimentSet:
    """One data set.

    Attributes:
        name: As on the command line.
        labels: Names of the classes in their published order; empty for scores.
        bound: Scores lie in [-bound, bound].
        language: Of its transcripts, "en" or "zh".
        counts: Clips of each split as published.
        files: SHA-256 of each published file -> its name.
    """

    name: str
    labels: tuple[str, ...] = ()
    bound: float = 0.0
    language: str = "en"
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def is_score(self) -> bool:
        """Whether its labels are scores."""
        return not self.labels

    @property
    def prompt(self) -> Prompt:
        """In the language of its transcripts."""
        if self.language == "zh":
            if self.is_score:
                task = f"请对上述多模态内容的情感强度进行预测，范围在[-{self.bound}, {self.bound}]之间。响应：情感为"
            else:
                task = f"请识别上述多模态内容的情感，候选为<{'、'.join(self.labels)}>。响应：情感为"
            return Prompt("<多模态>", "</多模态>\n", task)
        if self.is_score:
            task = (
                "Please predict the sentiment intensity of the above multimodal content in the range "
                f"[-{self.bound}, {self.bound}]. Response: The sentiment is "
            )
        else:
            task = (
                "Please recognize the emotion of the above multimodal content from the target set "
                f"<{', '.join(self.labels)}>. Response: The emotion is "
            )
        return Prompt("<Multimodal>", "</Multimodal>\n", task)


SETS = {
    found.name: found
    for found in (
        SentimentSet(
            "mosi",
            bound=3.0,
            counts={"train": 1284, "valid": 229, "test": 686},
            files={
                "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": "MOSI unaligned_50.pkl",
                "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": "MOSI aligned_50.pkl",
            },
        ),
        SentimentSet(
            "mosei",
            bound=3.0,
            counts={"train": 16326, "valid": 1871, "test": 4659},
            files={
                "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": "MOSEI unaligned_50.pkl",
                "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": "MOSEI aligned_50.pkl",
            },
        ),
        SentimentSet(
            "sims",
            bound=1.0,
            language="zh",
            counts={"train": 1368, "valid": 456, "test": 457},
            files={"c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": "SIMS unaligned_39.pkl"},
        ),
        SentimentSet(
            "simsv2",
            bound=1.0,
            language="zh",
            counts={"train": 2722, "valid": 647, "test": 1034},
            files={"f8fd9a1dd070588a714ff357b00f31d5bb93277b4e502cf2dc4ff718a95fc49b": "SIMS-v2 ch-simsv2s.pkl"},
        ),
        SentimentSet("meld", MELD, counts={"train": 9989, "valid": 1109, "test": 2610}),
        SentimentSet("cherma", CHERMA, language="zh"),
    )
}


def sentiment_set(name: str) -> SentimentSet:
    """The data set of this name.

    Raises:
        InputError: There is none.
    """
    if name not in SETS:
        raise InputError(f"--set {name}: one of {', '.join(SETS)}")
    return SETS[name]
