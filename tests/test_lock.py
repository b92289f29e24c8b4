"""The lock file fits pyproject.toml: what CI installs is what is asked for, by hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each line of the lock file and the hashes of its files."""
    text = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(Requirement(line.partition(" --hash")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines]


def asked(extra: str) -> list[Requirement]:
    """What the project, with an extra, asks for itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for line in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        needed = Requirement(line)
        found += asked(next(iter(needed.extras))) if needed.name == project["name"] else [needed]
    return found


@pytest.mark.parametrize("needed", [*asked(""), *asked("dev")], ids=str)
def test_what_is_asked_for_is_locked_to_versions_that_fit(needed):
    pins = [pin for pin, _ in locked() if canonicalize_name(pin.name) == canonicalize_name(needed.name)]
    assert pins, f"{needed} is not in the lock file; run make lock"
    for pin in pins:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert needed.specifier.contains(version.version, prereleases=True), f"{pin}: {needed} is asked for; make lock"


def test_every_line_has_hashes_and_no_place():
    lines = locked()
    assert len(lines) > 80
    for pin, hashes in lines:
        assert hashes, pin
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), pin
        assert pin.url is None
    text = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--extra-index|--find-links|^-|[ =]/", text, re.MULTILINE)


def test_the_build_backend_is_locked_too():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {canonicalize_name(pin.name) for pin, _ in locked()}
    assert {canonicalize_name(Requirement(line).name) for line in project["build-system"]["requires"]} <= names
