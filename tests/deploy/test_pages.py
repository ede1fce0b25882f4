"""What the deployment's pages tell people to type or set exists."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from deploy.tools.chart_readme import documented
from hdet_ray.cli.main import app
from tests.deploy.rendering import BIN, CHART, CI_VALUES, NAMESPACE, RELEASE, ROOT, quiet_environment, render

PAGES = [ROOT / "docs" / name for name in ("compose.md", "kubernetes.md", "security.md")]
NOTES = CHART / "templates/NOTES.txt"
TEXTS = pytest.mark.parametrize("page", [*PAGES, NOTES], ids=lambda path: path.name)

VERBS = (
    "create secret generic",
    "auth can-i",
    "port-forward",
    "wait",
    "get",
    "exec",
    "cp",
    "delete",
    "run",
    "upgrade",
    "install",
    "uninstall",
    "test",
)
# Roots of values, followed by at least one more name: `image` alone is a word.
_VALUE = re.compile(r"`([a-z][A-Za-z]*(?:\.[A-Za-z]+)+)(?=[`=])")


def _known_values() -> set[str]:
    paths = {value.path for value in documented((CHART / "values.yaml").read_text(encoding="utf-8"))}
    above = {path.rpartition(".")[0] for path in paths}
    return paths | above | {path.rpartition(".")[0] for path in above}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_value_that_a_page_names_is_one_of_the_chart(page: Path) -> None:
    roots = {path.partition(".")[0] for path in _known_values()}
    named = set(_VALUE.findall(page.read_text(encoding="utf-8")))
    # `checkpoint.keep` and the like belong to a job's spec.
    assert {name for name in named if name.partition(".")[0] in roots} - _known_values() == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_values_that_a_page_shows_render(page: Path) -> None:
    blocks = [block for block in _indented(page.read_text(encoding="utf-8")) if _is_values(block)]
    for block in blocks:
        render(yaml.safe_load(block))
    assert len(blocks) == (2 if page.name == "kubernetes.md" else 0)


@TEXTS
def test_every_command_of_ours_exists_with_its_options(page: Path) -> None:
    commands = _commands(get_command(app))
    named = re.findall(
        r"(?m)(?:^|--|[;`$(=}] ?| )hdet ((?:[a-z]+ ?)+)((?: --[a-z-]+)*)", page.read_text(encoding="utf-8")
    )
    used = [(words.split(), options.split()) for words, options in named if words.split()[0] in commands]
    assert used
    for words, options in used:
        known: Any = commands
        for word in words:
            if isinstance(known, dict) and word in known:
                known = known[word]
        if not isinstance(known, dict):
            assert set(options) <= known, (words, options)


def _commands(group: Any) -> dict[str, Any]:
    """Names of commands, with a map of theirs or the options that they take."""
    return {
        name: _commands(command)
        if hasattr(command, "commands")
        else {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }


@pytest.mark.deploy
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda path: path.name)
def test_every_kubectl_and_helm_option_of_a_page_exists(page: Path) -> None:
    assert _unknown_options(page.read_text(encoding="utf-8")) == []


def test_every_variable_of_the_compose_file_is_told() -> None:
    used = re.findall(r"\$\{([A-Z_]+):-", (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    told = (ROOT / "docs/compose.md").read_text(encoding="utf-8")
    assert used
    assert [name for name in used if f"`{name}`" not in told] == []


@pytest.mark.deploy
@pytest.mark.parametrize("file", CI_VALUES, ids=lambda path: path.stem)
def test_the_notes_give_three_commands_that_name_what_was_rendered(file: Path) -> None:
    command = [str(BIN / "helm"), "install", RELEASE, str(CHART), "--namespace", NAMESPACE, "-f", str(file)]
    done = subprocess.run(
        [*command, "--dry-run=client"], capture_output=True, text=True, check=True, env=quiet_environment()
    )
    notes = done.stdout.partition("NOTES:")[2]
    assert re.findall(r"(?m)^(\d)\.", notes) == ["1", "2", "3"]
    assert _unknown_options(notes) == []
    names = {item["metadata"]["name"] for item in render(file)}
    assert set(re.findall(r"ray\.io/cluster=([a-z0-9-]+)", notes)) <= names
    assert set(re.findall(r"service/([a-z0-9-]+)", notes)) <= names


def _unknown_options(text: str) -> list[tuple[str, str]]:
    """Options in the text's kubectl and helm commands that the tools don't have."""
    pattern = rf"(kubectl|helm) (?:--namespace \S+ )?({'|'.join(VERBS)})\b([^\n|`]*)"
    found = re.findall(pattern, text.replace("\\\n", " "))
    assert found
    unknown = []
    for tool, verb, rest in found:
        told = _help(tool, verb)
        # What stands behind a lone `--` belongs to the command inside the pod.
        options = set(re.findall(r"--[a-z-]{2,}", rest.partition(" -- ")[0])) - {"--namespace"}
        unknown += [(f"{tool} {verb}", option) for option in options if option not in told]
    return unknown


@cache
def _help(tool: str, verb: str) -> str:
    command = [str(BIN / tool), *verb.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=quiet_environment())
    return done.stdout


def _indented(text: str) -> Iterator[str]:
    """The page's indented blocks."""
    for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE):
        yield re.sub(r"(?m)^ {4}", "", block)


def _is_values(block: str) -> bool:
    try:
        loaded = yaml.safe_load(block)
    except yaml.YAMLError:
        return False
    roots = {path.partition(".")[0] for path in _known_values()}
    return isinstance(loaded, dict) and set(loaded) <= roots
