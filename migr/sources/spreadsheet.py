"""Rows of an .xlsx file, as text, the way a CSV file gives them (openpyxl 3.1 reads it).

Nothing is computed: of a formula, the value counts that was stored when the file was saved. Spreadsheets come from
anywhere, so all parts together may unpack to MAX_BYTES at most (the zip module stops at the sizes that the archive
declares), cells and their text are counted (many cells can refer to one long text), and XML entities are refused, which
openpyxl does where `defusedxml` is installed.
"""

import warnings
import zipfile
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from openpyxl import DEFUSEDXML, load_workbook
from openpyxl.cell.cell import ERROR_CODES
from openpyxl.utils import get_column_letter

from migr.errors import InputError
from migr.files.records import Row

MAX_BYTES = 64 * 2**20  # unpacked; ten thousand captions in two languages take 6 MiB
MAX_ROWS = 200_000  # blank ones too: a file can claim a row number without having the rows before
MAX_COLUMNS = 256
MAX_CELLS = 2_000_000  # that are not blank, of all sheets
LONGEST_CELL = 100_000  # characters; Excel itself holds 32,767
_HEADER = 5  # rows that may be the header: some sheets have a title above it
_Cells = dict[int, str]  # column from 1 -> text; blank cells are left out


def spreadsheet_rows(path: Path, fits: Callable[[Sequence[str]], bool], need: str) -> list[tuple[int, Row]]:
    """The rows below the header, each column's text by its name in small letters ("" where a cell is blank).

    The first sheet is read if it has the wanted columns, else the only one that has them. The header is the first row
    with these columns among the first five; blank rows and columns without a name are passed over. Whole numbers are
    written without a point (25), dates as ISO 8601.

    Args:
        path: The file.
        fits: Whether these names, in small letters, are a header with the wanted columns.
        need: What is wanted, for messages.

    Returns:
        (row number in the sheet, row).

    Raises:
        InputError: No such file, no .xlsx file, beyond one of the bounds above, no sheet or several ones with the
            wanted columns, a name that two columns have, a cell with an error value; names file, row and column.
    """
    sheets: dict[str, list[tuple[int, _Cells]]] = {}
    headers: dict[str, int] = {}  # sheet -> index of its header
    for title, rows in _sheets(path).items():
        fit = (i for i, (_, cells) in enumerate(rows[:_HEADER]) if fits([name.casefold() for name in cells.values()]))
        sheets[title], headers[title] = rows, next(fit, -1)
    fitting = [title for title, at in headers.items() if at >= 0]
    if not fitting:
        first = (f"{title!r}: {', '.join(rows[0][1].values()) if rows else 'empty'}" for title, rows in sheets.items())
        raise InputError(f"{path}: no sheet has {need}; first rows: {' '.join('; '.join(first).split())[:300]}")
    if len(fitting) > 1 and fitting[0] != next(iter(sheets)):
        names = ", ".join(map(repr, fitting))
        raise InputError(f"{path}: the sheets {names} have {need}: leave one of them, or put it first")
    rows, at = sheets[fitting[0]], headers[fitting[0]]
    number, header = rows[at]
    header = {column: name.casefold() for column, name in header.items()}
    columns = list(header.values())
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise InputError(f"{path}:{number}: two columns are named {twice!r}; rename one")
    result = []
    for number, cells in rows[at + 1 :]:
        row: Row = {name: cells.get(column, "") for column, name in header.items()}
        if broken := next((column for column in header if cells.get(column) in ERROR_CODES), None):
            place = f"{get_column_letter(broken)}{number} ({header[broken]})"
            raise InputError(f"{path}:{number}: cell {place} holds the error {cells[broken]}; mend or empty it")
        if any(row.values()):
            result.append((number, row))
    return result


def _sheets(path: Path) -> dict[str, list[tuple[int, _Cells]]]:
    """Title -> (row number, cells) of the rows that are not blank."""
    assert DEFUSEDXML, "defusedxml is a dependency"
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            with zipfile.ZipFile(file) as archive:
                size = sum(part.file_size for part in archive.infolist())
            if size > MAX_BYTES:
                raise InputError(
                    f"{path}: unpacks to {size / 2**20:,.0f} MiB, more than {MAX_BYTES >> 20}; save the sheet alone"
                )
            warnings.simplefilter("ignore")  # of styles and extensions, which are not looked at
            book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
            room = _Room(path)
            return {sheet.title: _rows(sheet, room) for sheet in book.worksheets}
    except InputError:
        raise
    except Exception as error:  # what a broken file raises in the library has no common class
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as .xlsx ({reason[:200]}); an old .xls, or one with a password, has to be saved "
            "as .xlsx or CSV"
        ) from None


class _Room:
    """What the cells of a file may still take, all sheets together."""

    def __init__(self, path: Path) -> None:
        self.path, self.cells, self.characters = path, MAX_CELLS, MAX_BYTES

    def take(self, value: Any, sheet: Any, row: int, column: int) -> str:
        """A cell's text; InputError if it is too long, or one too many."""
        if isinstance(value, str) and len(value) > LONGEST_CELL:
            place = f"sheet {sheet.title!r}, cell {get_column_letter(column)}{row}"
            raise InputError(f"{self.path}: {place}: more than {LONGEST_CELL:,} characters")
        text = _text(value)
        self.cells -= 1
        self.characters -= len(text)
        if self.cells < 0 or self.characters < 0:
            most = f"{MAX_CELLS:,} cells or {MAX_BYTES >> 20} million characters"
            raise InputError(f"{self.path}: sheet {sheet.title!r}, row {row}: more than {most}; save the sheet alone")
        return text


def _rows(sheet: Any, room: _Room) -> list[tuple[int, _Cells]]:
    sheet.reset_dimensions()  # declared by whatever wrote the file, and sometimes wrong
    rows = []
    for number, row in enumerate(sheet.iter_rows(max_col=MAX_COLUMNS, values_only=True), 1):
        if number > MAX_ROWS:
            raise InputError(f"{room.path}: sheet {sheet.title!r} goes on below row {MAX_ROWS:,}; remove what is there")
        values = ((column, room.take(value, sheet, number, column)) for column, value in enumerate(row, 1)
                  if value is not None)  # fmt: skip
        cells = {column: text for column, text in values if text}
        if cells:
            rows.append((number, cells))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value).replace("_x000D_", "").strip()  # how Excel writes the first half of a line break
