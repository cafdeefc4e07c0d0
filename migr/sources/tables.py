"""Tables as offices write them (CSV, TSV, XLSX), read by one rule in every command, and the names that clips go by.

Excel in half of Europe separates by semicolons, writes a byte order mark, capitals in the header, back slashes in
paths, and turns `00042` into `42` and `123456789012` into `1.23457E+11`. What can be read is read; what is lost is one
line with file, line and cause.
"""

import csv
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from openpyxl.cell.cell import ERROR_CODES

from migr.errors import InputError
from migr.files.records import Row
from migr.sources.spreadsheet import spreadsheet_rows

MEDIA_ENDINGS = (
    *("mp4", "avi", "mov", "mkv", "webm", "flv", "wmv", "mpg", "mpeg", "m4v", "ts", "3gp"),
    *("wav", "mp3", "m4a", "flac", "ogg", "aac", "opus"),
)
_DELIMITERS = ",;\t|"
_HEADER = 5  # lines that may be the header: exported sheets have a title above it, some files `sep=;`
_LONGEST_FIELD = 1 << 30
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mrz|mai|okt|dez"
_DATE = re.compile(rf"\d{{1,4}}[- ./]({_MONTHS})[a-zä]*\.?|({_MONTHS})[a-zä]*\.?[- ./]\d{{1,4}}", re.IGNORECASE)
_SHORTENED = re.compile(r"\d([.,]\d+)?E\+\d+", re.IGNORECASE)


def read_table(path: Path, fits: Callable[[Sequence[str]], bool], need: str) -> Iterator[tuple[int, Row]]:
    """The rows of a table with a header, as text.

    Args:
        path: A file that ends in .xlsx, or a text with a delimiter (comma, semicolon, tab or bar; the one that makes
            the header fit) in UTF-8, or in UTF-16 with its mark.
        fits: Whether these column names, stripped and in small letters, are the header of what is wanted. The header
            is the first such line among the first five.
        need: What is wanted, for messages.

    Yields:
        Line (or row of the sheet) from 1, and the row: column name in small letters -> text, "" where there is none.
        Blank rows and columns without a name are left out.

    Raises:
        InputError: No such file, no text, no header that fits, two columns of one name, another number of columns
            than the header has, a cell with Excel's error value; names file and line.
    """
    if path.suffix.casefold() in (".xlsx", ".xlsm"):
        yield from spreadsheet_rows(path, fits, need)
        return
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    csv.field_size_limit(_LONGEST_FIELD)
    encoding = _encoding(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            delimiter, skipped = _header(path, list(islice(file, _HEADER)), fits, need)
            file.seek(0)
            for _ in range(skipped):
                next(file)
            yield from _rows(path, csv.reader(file, delimiter=delimiter, strict=True), skipped)
    except UnicodeError as error:
        raise InputError(
            f"{path}: not {encoding.removesuffix('-sig').upper()} text ({error}); save it as UTF-8 (Excel: 'CSV UTF-8')"
        ) from None


def names_of(value: str) -> list[str]:
    """The names that a clip may go by: as written, its file name without folder and media suffix, its bare number.

    Back slashes are slashes, composed and decomposed letters (Macs) are the same, and `42.0`, `0042` and `42` are one
    number: Excel rewrites them.
    """
    text = unicodedata.normalize("NFC", str(value).strip())
    path = PurePosixPath(text.replace("\\", "/"))
    stem = path.stem if path.suffix[1:].casefold() in MEDIA_ENDINGS else path.name
    names = [str(value).strip(), text, stem]
    number = stem.removesuffix(".0")
    if number.isascii() and number.isdigit():
        names.append(number.lstrip("0") or "0")
    return list(dict.fromkeys(names))


def check_name(where: str, value: str) -> None:
    """Refuse a clip's name that Excel has made unreadable: digits in scientific notation, or a date.

    Raises:
        InputError: It is one; begins with `where`.
    """
    text = value.strip()
    if _SHORTENED.fullmatch(text) or _DATE.fullmatch(text):
        raise InputError(
            f"{where}: {text!r} is what Excel makes of a clip's name; enter the names again in a column whose format "
            "is Text, or export the table without Excel"
        )


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def _header(path: Path, lines: list[str], fits: Callable[[Sequence[str]], bool], need: str) -> tuple[str, int]:
    """The delimiter, and the number of lines above the header."""
    for skipped, line in enumerate(lines):
        for delimiter in _DELIMITERS:
            if fits(_named(next(csv.reader([line], delimiter=delimiter), []))):
                return delimiter, skipped
    first = next((line.strip() for line in lines if line.strip()), "")
    raise InputError(f"{path}:1: no header names {need}; the first line is {first[:200]!r}")


def _named(header: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in header]


def _rows(path: Path, reader: Any, skipped: int) -> Iterator[tuple[int, Row]]:
    try:
        header = _named(next(reader))
        names = [name for name in header if name]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"{path}:{skipped + 1}: two columns are named {twice!r}; rename one")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}:{skipped + reader.line_num}"
            if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
                raise InputError(f"{where}: another number of columns ({len(cells)}) than the header's {len(header)}")
            row: Row = {name: cell for name, cell in zip(header, cells, strict=False) if name}
            if broken := next((name for name, cell in row.items() if cell in ERROR_CODES), None):
                raise InputError(f"{where}: {broken} holds Excel's error {row[broken]}; mend or empty it")
            yield skipped + reader.line_num, row
    except csv.Error as error:
        line = skipped + reader.line_num
        raise InputError(f"{path}:{line}: not valid CSV ({error}; a quotation mark without its end?)") from None
