"""The programs in the documents run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1]
DOCUMENTS = [FOLDER / "README.md", FOLDER.parents[1] / "docs" / "migrating-from-flex-attention.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_document(path: Path) -> None:
    programs = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert programs
    for program in programs:
        names: dict[str, Any] = {}
        exec(compile(program, str(path), "exec"), names)
