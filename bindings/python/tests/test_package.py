"""What the installed wheel holds beside the code."""

from __future__ import annotations

import importlib.metadata
import re

_DISTRIBUTION = importlib.metadata.distribution("tilewright")


def _texts() -> dict[str, str]:
    """The files of the wheel's metadata by their paths within it; none of what pip adds when it installs."""
    added = ("RECORD", "direct_url.json", "INSTALLER", "REQUESTED")
    files = [file for file in _DISTRIBUTION.files or () if ".dist-info" in file.parts[0] and file.name not in added]
    return {"/".join(file.parts[1:]): file.read_text(encoding="utf-8") for file in files}


def test_licences_are_in_the_wheel() -> None:
    named = _DISTRIBUTION.metadata.get_all("License-File")
    assert named is not None and sorted(named) == ["LICENSE-APACHE", "LICENSE-MIT"]
    texts = _texts()
    assert "Apache License" in texts["licenses/LICENSE-APACHE"]
    assert "Permission is hereby granted" in texts["licenses/LICENSE-MIT"]


def test_metadata_names_no_folder_of_the_building_machine() -> None:
    for path, text in _texts().items():
        assert re.search(r"file:/|\bpath\+", text) is None, path
