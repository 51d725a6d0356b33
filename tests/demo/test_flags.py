"""A plan's flags cannot get round the plan's own entries, which are what guards the test states."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from grape.config.collect import CollectConfig
from grape.config.demo import DemoConfig
from grape.config.evaluate import EvaluateConfig
from grape.config.pair import PairConfig
from grape.config.score import ScoreConfig
from grape.config.sft import SFTConfig
from grape.config.train import TrainConfig
from grape.demo.flags import SET_BY_THE_DEMO, check_flags
from grape.demo.pipeline import Layout, build_stages
from grape.demo.plan import parse_plan
from grape.errors import ConfigError
from tests.demo.test_plan import changed

CONFIGS: dict[str, type] = {
    "evaluate": EvaluateConfig,
    "collect": CollectConfig,
    "score": ScoreConfig,
    "pair": PairConfig,
    "train": TrainConfig,
    "sft": SFTConfig,
}


@pytest.mark.parametrize(
    ("stage", "flags", "message"),
    [
        (
            "collect",
            {"init_split": "official"},
            "here: the flag 'init_split' of collect .* the plan's entry rollout_st",
        ),
        ("collect", {"init-split": "official"}, "the flag 'init-split' of collect"),  # tyro takes both spellings
        ("collect", {"allow_official_states": True}, "never start from test states"),
        ("collect", {"init_split=official": []}, "flags as name and value"),
        ("collect", {"seed": [0, "--init_split", "official"]}, "flags as name and value"),
        ("evaluate", {"init_split": "heldout"}, "change the plan's entry test_states"),
        ("evaluate", {"adapter": "elsewhere"}, "the flag 'adapter' of evaluate"),
        ("pair", {"dataset_name": "other"}, "change the plan's entry name"),
        ("train", {"device": "cpu"}, "pass --device to grape demo"),
        ("sft", {"max_steps": 9000}, "as many gradient steps as train"),
    ],
)
def test_what_the_demo_sets_is_not_the_plans_to_set(stage: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_plan(changed(**{stage: flags}), "here")


def test_other_flags_are_the_plans() -> None:
    check_flags("train", {"beta": 0.2, "lora-rank": 8, "max_steps": 100}, "here")
    check_flags("score", {"tau_path": [0.1, 0.2], "lambda_ext": -1}, "here")


def test_the_table_has_every_flag_that_the_demo_sets(tmp_path: Path) -> None:
    plan = parse_plan(changed(iterations=2, supervised_arm=True), "here")
    stages = build_stages(DemoConfig(), plan, Layout(run_dir=tmp_path, plan=plan), count_steps=lambda folder: 1)
    seen = set()
    for name, *argv in (command for stage in stages for command in stage.commands()):
        entry = {"eval": "evaluate"}.get(name, name)
        if entry in SET_BY_THE_DEMO:
            seen.add(entry)
            flags = {word.removeprefix("--") for word in argv if word.startswith("--")}
            flags -= {"cut_at_parting"}  # the plan's, but for the supervised arm, which imitates to the end
            assert flags and flags <= SET_BY_THE_DEMO[entry].keys(), entry
    assert seen == SET_BY_THE_DEMO.keys() == CONFIGS.keys()


def test_the_supervised_arm_imitates_chosen_trajectories_to_their_end(tmp_path: Path) -> None:
    plan = parse_plan(changed(supervised_arm=True, pair={"cut_at_parting": True}), "here")
    layout = Layout(run_dir=tmp_path, plan=plan)
    stages = {stage.name: stage for stage in build_stages(DemoConfig(), plan, layout, count_steps=lambda folder: 1)}
    cut, whole = stages["pair"].commands()
    assert cut[cut.index("--cut_at_parting") + 1] == "True" and str(layout.pairs(0)) in cut
    last = len(whole) - 1 - whole[::-1].index("--cut_at_parting")
    assert whole[last + 1] == "False" and str(layout.whole_pairs()) in whole
    [imitate] = stages["train-supervised"].commands()
    assert str(layout.whole_pairs() / "chosen") in imitate


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_table_has_no_flag_that_does_not_exist(stage: str) -> None:
    assert SET_BY_THE_DEMO[stage].keys() <= {one.name for one in dataclasses.fields(CONFIGS[stage])}
