"""metrics.json as somebody else may hand it over: of the shape that `measure` writes, or one line."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from eval.figures.codes import CELLS
from eval.figures.rates import COUNTS, RATES
from migr.files.shape import Count

Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]


class _Rates(BaseModel):
    """A rate that there is has its interval."""

    @model_validator(mode="after")
    def _has_intervals(self) -> Self:
        for rate in RATES:
            if getattr(self, rate.name) is not None and getattr(self, f"{rate.name}_ci95") is None:
                raise ValueError(f"{rate.name} has no {rate.name}_ci95")
        return self


def _fields(kind: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, (kind, ...))


_Group: Any = create_model(
    "_Group",
    __base__=_Rates,
    **_fields(Share | None, *(rate.name for rate in RATES)),
    **_fields(Interval | None, *(f"{rate.name}_ci95" for rate in RATES)),
    **_fields(Count, *(f"{rate.name}_n" for rate in RATES)),
)


class _Confusion(BaseModel):
    labels: list[str]
    answers: list[str] = []
    judged: list[str] = []
    counts: list[list[Count]]

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        columns = len(self.answers or self.judged)
        if not columns or len(self.counts) != len(self.labels) or any(len(row) != columns for row in self.counts):
            raise ValueError("counts must have a row a label and a column an answer")
        return self


class _Kind(BaseModel):
    n: Count
    accuracy: Share | None


class _Class(BaseModel):
    n: Count
    recall: Share | None
    precision: Share | None


class _Judge(BaseModel):
    name: str
    accuracy: Share | None
    n: Count = 0
    accuracy_ci95: Interval | None = None
    n_failed: Count = 0
    kappa: Annotated[float, Field(ge=-1, le=1)] | None = None
    blind: list[str] = []
    prompt: str | None = None
    confusion: _Confusion | None = None
    per_kind: dict[str, _Kind] = {}
    per_class: dict[str, _Class] = {}


# no others, as pages add them up
_Cells: Any = create_model("_Cells", __config__=ConfigDict(extra="forbid"), **_fields(Count, *CELLS))
_counts: dict[str, Any] = {name: (Count, 0) for name, _ in COUNTS}
_Counts: Any = create_model("_Counts", __base__=_Group, **_counts)


class Metrics(_Counts):
    """metrics.json, each rate of today in it."""

    n: Count
    n_unparseable: Count
    n_judge_failed: Count
    cells: _Cells
    per_class: dict[str, _Group]
    per_dominant: dict[str, _Group]
    confusion: _Confusion
    confusion_judged: _Confusion | None = None
    judge: _Judge | None = None
    settings: dict[str, str | int | float | None] | None = None
    unread_answers: dict[str, Count] | None = None
