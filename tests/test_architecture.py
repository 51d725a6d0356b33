"""The shape of the package: layers, lazy imports, command line, settings."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grape
import grape.config
from grape.cli.main import (
    COMMANDS,
    EXIT_BROKEN_PIPE,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    load_command,
    main,
    run_command,
)
from grape.errors import GrapeError, PairingError

PACKAGE = Path(grape.__file__).parent
HEAVY = ("torch", "tensorflow", "transformers", "mujoco", "robosuite", "libero", "mani_skill", "sapien", "wandb", "ray")
CONFINED = {
    "tensorflow": ("rlds",),
    "tensorflow_datasets": ("rlds",),
    "libero": ("envs",),
    "robosuite": ("envs",),
    "mujoco": ("envs",),
    "mani_skill": ("envs",),
    "sapien": ("envs",),
    "simpler_env": ("envs",),
    "mani_skill2_real2sim": ("envs",),
    "openai": ("constraints",),
    "ray": ("rollouts",),
}
"""Top-level module -> the folders of grape/ that may import it, directly or through ``require``."""
LONG_MODULE_LINES = 330


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def modules_loaded_by(statement: str) -> list[str]:
    done = run_python(f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert modules_loaded_by("import grape") == []


def test_the_command_line_loads_nothing_heavy_to_list_its_commands() -> None:
    assert modules_loaded_by("from grape.cli.main import main; main(['--help'])") == []


def test_the_check_for_heavy_imports_sees_them() -> None:
    assert modules_loaded_by("import transformers") == ["transformers"]


def test_every_config_loads_nothing_heavy() -> None:
    names = [f"grape.config.{info.name}" for info in pkgutil.iter_modules(grape.config.__path__)]
    assert modules_loaded_by("\n".join(f"import {name}" for name in names)) == []


def test_public_surface() -> None:
    # A name is public once it is here; taking one away is a breaking change and wants a changelog line.
    assert {module.name for module in pkgutil.iter_modules(grape.__path__)} == {
        "cli", "config", "constraints", "demo", "envs", "errors", "evaluation", "files", "losses", "models",
        "optional", "preferences", "rewards", "rlds", "rollouts", "scene", "trainer", "trajectory",
    }  # fmt: skip
    assert re.fullmatch(r"\d+\.\d+\.\d+", grape.__version__)


def test_layers(repository: Path) -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def imported_modules(tree: ast.AST) -> set[str]:
    """Every module that a file imports anywhere, including through ``require`` and ``import_module``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("require", "import_module", "__import__") and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return {name.split(".")[0] for name in names}


def test_imported_modules_sees_hidden_imports() -> None:
    tree = ast.parse("def f():\n    import torch.nn\n    return require('tensorflow.io', extra='rlds')")
    assert imported_modules(tree) == {"torch", "tensorflow"}


@pytest.mark.parametrize("module", CONFINED)
def test_dependencies_stay_in_their_folder(module: str) -> None:
    users = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if module in imported_modules(parse(path))}
    outside = sorted(str(path) for path in users if path.parts[0] not in CONFINED[module])
    assert outside == [], f"{module} belongs into {CONFINED[module]}"


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def test_modules_stay_readable() -> None:
    long = {
        str(path.relative_to(PACKAGE)): n
        for path in PACKAGE.rglob("*.py")
        if (n := count_lines(path)) > LONG_MODULE_LINES
    }
    assert long == {}, "split these modules"


def count_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("word", ["utils", "helpers", "misc", "common"])
def test_no_module_is_named_after_nothing(word: str) -> None:
    assert [str(path) for path in PACKAGE.rglob("*") if path.stem == word] == []


def config_classes() -> dict[str, type]:
    classes = {}
    for info in pkgutil.iter_modules(grape.config.__path__):
        module = importlib.import_module(f"grape.config.{info.name}")
        for name, value in vars(module).items():
            if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == module.__name__:
                classes[f"{info.name}.{name}"] = value
    return classes


def test_configs_are_frozen_and_keyword_only() -> None:
    loose = [
        name
        for name, kind in config_classes().items()
        if not kind.__dataclass_params__.frozen or not all(one.kw_only for one in dataclasses.fields(kind))  # type: ignore[attr-defined]
    ]
    assert loose == []


CHECKED_ALONE = {
    "collect.CollectConfig.allow_official_states",
    "evaluate.EvaluateConfig.load_in_4bit",
    "evaluate.EvaluateConfig.load_in_8bit",
    "evaluate.EvaluateConfig.num_steps_wait",
    "train.TrainConfig.use_lora",
}
"""A permission, and published settings of which one value is accepted: nothing but their config's check reads them."""


@functools.cache
def settings_read(kind: type) -> set[str]:
    """Names read of a config by its own properties, by modules that import its class, and by what those import."""
    trees = {path: parse(path) for path in PACKAGE.rglob("*.py") if path.parent.name != "config"}
    users = [tree for tree in trees.values() if kind.__name__ in imported_names(tree)]
    handed_on = set().union(*map(imported_names, users))
    [own] = ast.parse(inspect.getsource(kind)).body
    own.body = [node for node in own.body if getattr(node, "name", "") != "__post_init__"]  # type: ignore[attr-defined]
    read = attributes(own, "^self$").union(*(attributes(user, "config|settings") | quoted(user) for user in users))
    for path, tree in trees.items():
        if ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)) in handed_on:
            read |= attributes(tree, r"\bconfig$")
    return read


def imported_names(tree: ast.AST) -> set[str]:
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {str(node.module) for node in froms} | {alias.name for node in froms for alias in node.names}


@functools.cache
def attributes(tree: ast.AST, receiver: str) -> set[str]:
    """Every name that is read as ``something.name``, where ``something`` matches the pattern."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if re.search(receiver, ast.unparse(node.value))}


def quoted(tree: ast.AST) -> set[str]:
    """Every name that stands in a tuple, as for ``getattr``."""
    tuples = (node for node in ast.walk(tree) if isinstance(node, ast.Tuple))
    return {str(one.value) for node in tuples for one in node.elts if isinstance(one, ast.Constant)}


def test_every_setting_is_read_where_its_config_is_used() -> None:
    unread = {
        f"{name}.{one.name}"
        for name, kind in config_classes().items()
        for one in dataclasses.fields(kind)
        if one.name not in settings_read(kind)
    }
    assert unread == CHECKED_ALONE


def test_every_setting_is_documented() -> None:
    undocumented = []
    for path in sorted((PACKAGE / "config").glob("*.py")):
        for kind in (node for node in parse(path).body if isinstance(node, ast.ClassDef)):
            following = kind.body[1:] + [ast.Pass()]
            for statement, after in zip(kind.body, following, strict=True):
                is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
                if is_field and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                    undocumented.append(f"{path.stem}.{kind.name}.{statement.target.id}")  # type: ignore[union-attr]
    assert undocumented == []


def reraises(handler: ast.AST) -> bool:
    return any(isinstance(inner, ast.Raise) for inner in ast.walk(handler))


def test_errors_are_caught_by_name() -> None:
    # Where a process ends, and there alone, everything is caught: a line that does so says "process boundary".
    broad = []
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text().splitlines()
        for node in ast.walk(parse(path)):
            is_broad = isinstance(node, ast.ExceptHandler) and (
                node.type is None or getattr(node.type, "id", "") == "Exception"
            )
            if is_broad and "process boundary" not in lines[node.lineno - 1] and not reraises(node):
                broad.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert broad == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "usage:" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["colect"]) == EXIT_USAGE
    assert "Did you mean 'collect'?" in capsys.readouterr().err


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == EXIT_USAGE
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_unknown_flag_is_a_usage_error() -> None:
    assert main(["demo", "--profle", "quick"]) == EXIT_USAGE


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PairingError("initial states differ"), EXIT_ERROR, "grape score: initial states differ"),
        (OSError(28, "No space left on device", "/full/file"), EXIT_ERROR, "the disk is full (/full/file)"),
        (PermissionError(13, "Permission denied", "/closed/file"), EXIT_ERROR, "/closed/file: permission denied"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "interrupted"),
        (SystemExit(2), EXIT_USAGE, ""),
        (SystemExit("no"), EXIT_ERROR, "no"),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("grape.cli.main.load_command", lambda name: fail)
    assert run_command("score", []) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("num_lines", [1, 100_000])  # the first reach the pipe only as the command ends
def test_a_reader_who_leaves_is_no_mistake(num_lines: int) -> None:
    script = (
        "import sys; from grape.cli import main; "
        f"main.load_command = lambda name: lambda argv: print('a line\\n' * {num_lines}); "
        "sys.exit(main.run_command('score', []))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == EXIT_BROKEN_PIPE


def test_a_pipe_that_is_not_our_output_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("grape.cli.main.load_command", lambda name: fail)
    with pytest.raises(BrokenPipeError):
        run_command("score", [])


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("grape.cli.main.load_command", lambda name: fail)
    with pytest.raises(ZeroDivisionError):
        run_command("score", [])


def test_every_command_is_a_function() -> None:
    assert all(callable(load_command(name)) for name in COMMANDS)


def test_error_tree_has_one_root() -> None:
    import grape.errors as errors

    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(kind, GrapeError) for kind in kinds if kind.__module__ == errors.__name__)


@pytest.mark.parametrize("script", ["finetune.py", "data_collection", "experiments/robot"])
def test_entry_scripts_are_thin_and_parse(script: str, repository: Path) -> None:
    path = repository / script
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files, f"{script} is missing"
    for file in files:
        parse(file)
        assert count_lines(file) <= 40, f"{file} is no thin entry; move its logic into grape/"


def test_no_machine_path_or_registry_host_is_committed(repository: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    words = re.compile(
        "|".join(
            [
                "/wo" + "rk/",
                "/opt/" + "wheels",
                "file" + "s.python" + "hosted",
                "py" + r"pi\.org",
                r"download\.py" + "torch",
            ]
        )
    )
    suffixes = {".py", ".md", ".toml", ".txt", ".json", ".cfg", ".sh", ""}
    hits = [
        name
        for name in listed.stdout.splitlines()
        if (repository / name).suffix in suffixes
        and os.path.isfile(repository / name)
        and words.search((repository / name).read_text(errors="ignore"))
    ]
    assert hits == []


def test_links_between_pages_lead_somewhere(repository: Path) -> None:
    broken = []
    for page in [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []
