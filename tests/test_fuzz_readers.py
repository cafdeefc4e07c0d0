"""Every reader of files, on changed files of its kind: read, or refused by an InputError, in time.

`tests/files/test_parsing.py` does so for the gates below them (JSON, YAML, text) with drawn texts.
"""

import pytest
from fuzzing import fuzz
from readers import READERS


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused(name, tmp_path):
    fuzz(READERS[name](), tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_changed_files_are_read_or_refused(name, tmp_path):
    fuzz(READERS[name](), tmp_path, 10_000)
