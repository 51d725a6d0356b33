"""The plan of a demo run: everything that decides its result, written down before it starts.

A plan is one JSON file. Its ``evaluate``, ``collect``, ``score``, ``pair``, ``train`` and ``sft`` objects
are flags of the commands of those names (``evaluate``: of ``grape eval``), so whatever a command can do, a plan can
ask for, but for what its other entries decide (``grape/demo/flags.py``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grape.config.collect import OFFICIAL_SPLIT
from grape.config.states import parse_state_range
from grape.demo.flags import STAGE_FLAGS, Flags, check_flags
from grape.errors import ConfigError, did_you_mean

TEST_SPLIT = OFFICIAL_SPLIT
TEST = "two-sided exact McNemar, one look"
"""The only test that is implemented."""
_KINDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class StateRange:
    """Consecutive initial states of one split, the same for every task."""

    split: str
    first: int = 0
    num_per_task: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.num_per_task < 1:
            raise ConfigError(
                f"states of split {self.split!r}: first is {self.first}, num_per_task {self.num_per_task}"
            )

    def __str__(self) -> str:
        return f"{self.split}/{self.first}-{self.first + self.num_per_task - 1}"

    def overlaps(self, indices: range) -> bool:
        """Whether one of these states is among ours."""
        return indices.start < self.first + self.num_per_task and self.first < indices.stop

    def shifted(self, blocks: int) -> StateRange:
        """The range of the same size, ``blocks`` ranges further on."""
        return dataclasses.replace(self, first=self.first + blocks * self.num_per_task)


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What is run, on which states, with which settings, and how it is judged."""

    name: str
    """Short name; also that of the RLDS data sets (lower-case letters, digits, underscores)."""
    question: str
    """What the run is to find out, in one sentence."""
    policy: str
    """Checkpoint folder or hub id of the policy to improve."""
    tasks: dict[str, tuple[int, ...]]
    """Suite -> task ids."""
    test_states: StateRange
    """Initial states on which the arms are compared."""
    rollout_states: StateRange
    """Initial states of the rollouts of the first iteration; later iterations take the following ones."""
    test: str
    """How before and after are compared; written down here, so that it is fixed before anybody sees a result."""
    used_states: tuple[str, ...] = ()
    """States that the policy has seen before this run, as SPLIT/FIRST-LAST per task, e.g. "train/0-199"; the report
    gives each test state's distance to the nearest of these and of the rollouts' states."""
    iterations: int = 1
    """Times round the loop collect, score, pair, train; each starts from the policy of the one before."""
    supervised_arm: bool = False
    """Whether to also train on the chosen trajectories alone, at equal gradient steps, and evaluate that."""
    alpha: float = 0.05
    """Significance level of ``test``, before against after."""
    evaluate: Flags = field(default_factory=dict)
    collect: Flags = field(default_factory=dict)
    score: Flags = field(default_factory=dict)
    pair: Flags = field(default_factory=dict)
    train: Flags = field(default_factory=dict)
    sft: Flags = field(default_factory=dict)
    proof: bool = False
    """The result is to be claimed: plan and code must be committed, the run is logged beside the plan, and no other
    proof of that log may have looked at these states. A plan on official states is one without this entry, too."""
    draft: bool = False
    """Hyper-parameters are not settled yet: a draft never runs as a proof, committed or not."""
    notes: str = ""
    """For the reader; changes nothing."""

    def __post_init__(self) -> None:
        if self.test != TEST:
            raise ConfigError(f"the plan's test is {self.test!r}; the only one that is implemented is {TEST!r}")
        if not self.tasks or not all(self.tasks.values()):
            raise ConfigError('the plan names no tasks; give e.g. {"libero_object": [0, 1]}')
        if self.rollout_states.split == TEST_SPLIT:
            raise ConfigError("rollout_states are official states, which are for testing only; name another split")
        if self.rollout_states.split == self.test_states.split:
            raise ConfigError(f"rollouts and test share the split {self.test_states.split!r}; name two different ones")
        for text in self.used_states:
            split, indices = parse_state_range(text)
            if split == self.test_states.split and self.test_states.overlaps(indices):
                raise ConfigError(
                    f"used_states {text!r} overlap with test_states {self.test_states}: the policy has seen what it is "
                    "to be tested on; name other test_states"
                )
        if self.iterations < 1 or not 0 < self.alpha < 1:
            raise ConfigError(f"iterations is {self.iterations} (at least 1), alpha {self.alpha} (between 0 and 1)")

    @property
    def num_test_states(self) -> int:
        """States per arm."""
        return self.test_states.num_per_task * sum(map(len, self.tasks.values()))

    @property
    def is_proof(self) -> bool:
        """Whether its look at the test states counts: it says so, or they are official ones."""
        return self.proof or self.test_states.split == TEST_SPLIT

    def test_state_names(self) -> set[tuple[str, str, int, int]]:
        """The test states that this plan looks at, as (split, suite, task, index)."""
        states = self.test_states
        indices = range(states.first, states.first + states.num_per_task)
        tasks = [(suite, task) for suite, ids in self.tasks.items() for task in ids]
        return {(states.split, suite, task, index) for suite, task in tasks for index in indices}

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def deciding(self) -> dict[str, Any]:
        """What decides the result: the plan without its notes. ``proof`` is younger than logged hashes of plans."""
        skipped = {"notes"} if self.proof else {"notes", "proof"}
        return {name: value for name, value in self.to_json().items() if name not in skipped}

    def hash(self) -> str:
        """Content hash: equal for equal plans, whatever the file's layout or its notes."""
        return hashlib.sha256(json.dumps(self.deciding(), sort_keys=True).encode()).hexdigest()


def load_plan(path: Path) -> DemoPlan:
    """Read a plan file.

    Raises:
        ConfigError: It is missing, is no JSON, or has an unknown, missing or contradictory entry.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"the plan {path} cannot be read ({error.strerror}); run from the repository's root"
        ) from error
    except ValueError as error:
        raise ConfigError(f"the plan {path} is no JSON: {error}") from error
    return parse_plan(content, str(path))


def parse_plan(content: Any, source: str) -> DemoPlan:
    """Build a plan from JSON values; ``source`` names them in errors."""
    values = _checked(content, DemoPlan, source)
    for name in ("test_states", "rollout_states"):
        values[name] = StateRange(**_checked(values[name], StateRange, f"{source}: {name}"))
    for name in STAGE_FLAGS:
        check_flags(name, values.get(name, {}), source)
    values["used_states"] = tuple(_list_of(str, values.get("used_states", []), f"{source}: used_states"))
    for text in values["used_states"]:
        try:
            parse_state_range(text)
        except ConfigError as error:
            raise ConfigError(f"{source}: used_states: {error}") from error
    if not isinstance(values["tasks"], dict):
        raise ConfigError(f"{source}: tasks: wanted suites with lists of task ids, got {values['tasks']!r}")
    values["tasks"] = {
        suite: tuple(_list_of(int, ids, f"{source}: tasks: {suite}")) for suite, ids in values["tasks"].items()
    }
    return DemoPlan(**values)


def _checked(content: Any, kind: type, source: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: wanted an object, got {content!r}")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    for name in content:
        if name not in fields:
            raise ConfigError(f"{source}: unknown entry {name!r}.{did_you_mean(name, fields)}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise ConfigError(f"{source}: the entry {name!r} is missing")
    hints = typing.get_type_hints(kind)
    for name, value in content.items():
        if hints[name] in _KINDS and not _is_of(hints[name], value):
            raise ConfigError(f"{source}: {name}: wanted {_KINDS[hints[name]]}, got {value!r}")
    return dict(content)


def _list_of(kind: type, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not all(_is_of(kind, one) for one in value):
        raise ConfigError(f"{where}: wanted a list in which each entry is {_KINDS[kind]}, got {value!r}")
    return value


def _is_of(kind: type, value: Any) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)  # isinstance would take true for a number
