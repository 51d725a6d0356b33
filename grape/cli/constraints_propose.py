"""``grape constraints propose``: a task and a picture in, checked stage constraints out, with all that led to them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grape.cli.arguments import parse_config
from grape.cli.score import toolkit_constraints
from grape.config.constraints_propose import ConstraintsProposeConfig
from grape.constraints import TaskConstraints
from grape.constraints.proposals import (
    PROMPT_VERSION,
    AnswerCache,
    Asking,
    Endpoint,
    MissingAnswerError,
    ModelSettings,
    Proposal,
    Scene,
    SceneKeypoint,
    Turn,
    UnusableAnswersError,
    count_tokens,
    first_messages,
    pixels_digest,
    propose,
    read_keypoints,
    readable,
    scene_of_picture,
    scene_of_view,
)
from grape.envs import spawn
from grape.envs.protocol import InitStateId, TaskSpec
from grape.envs.suites import suite_task
from grape.envs.view import take_view
from grape.errors import ConfigError
from grape.files import cache_folder, write_bytes_atomic, write_json

DEFAULT_FOLDER = Path("runs/constraints")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, look, ask, check, write, report."""
    config = parse_config(ConstraintsProposeConfig, "constraints propose", argv)
    out = out_path(config)
    if out.exists() and not config.overwrite:
        raise ConfigError(f"{out} is there already; name another file with --out, or replace it with --overwrite")
    refuse_to_replace_inputs(config, out)
    endpoint = None if config.offline else find_endpoint(config)
    if config.model is None and (endpoint is not None or config.offline):
        raise ConfigError("which model? Name it with --model, as the endpoint calls it")
    spec = None if config.suite is None or config.task_id is None else suite_task(config.suite, config.task_id)
    if config.model is None:
        return fall_back(config, spec, out, "there is no endpoint (no --base_url, OPENAI_BASE_URL or OPENAI_API_KEY)")
    scene = make_scene(config, spec)
    asking = Asking(
        settings=ModelSettings(
            model=config.model, structured=config.structured, temperature=config.temperature, seed=config.seed
        ),
        endpoint=endpoint,
        cache=AnswerCache(config.cache_dir or cache_folder() / "proposals"),
        refresh=config.refresh,
    )
    replacing = out.exists()
    if not replacing:  # constraints that stay where no answer comes keep their own question beside them
        save_question(scene, config, out)
    try:
        proposal = propose(scene, config.objective, asking)
    except MissingAnswerError as error:
        if config.offline:
            raise
        return fall_back(config, spec, out, str(error))
    except UnusableAnswersError as error:
        print(spent(config, error.turns))  # they are paid for all the same
        raise
    if replacing:
        save_question(scene, config, out)
    write_json(out, constraints_data(proposal.constraints))
    write_json(out.with_suffix(".proposal.json"), provenance(config, scene, asking, proposal))
    report(config, proposal, out)
    return 0


def out_path(config: ConstraintsProposeConfig) -> Path:
    """Where the constraints go; by default under the name that ``grape score --constraints_dir`` looks for."""
    if config.out is not None:
        return config.out
    if config.suite is not None:
        return DEFAULT_FOLDER / f"{config.suite}_{config.task_id}.json"
    words = re.findall(r"[a-z0-9]+", (config.task or "").lower())
    return DEFAULT_FOLDER / f"{'_'.join(words)[:60] or 'task'}.json"


def refuse_to_replace_inputs(config: ConstraintsProposeConfig, out: Path) -> None:
    """Raise ``ConfigError`` where what is written would be written over the question's own files."""
    written = {path.resolve() for path in (out, out.with_suffix(".png"))}
    for path in (config.image, config.keypoints):
        if path is not None and path.resolve() in written:
            raise ConfigError(f"{path} would be replaced, as {out} and its picture are written; name another --out")


def find_endpoint(config: ConstraintsProposeConfig) -> Endpoint | None:
    """From flags and environment; ``None`` where there is none."""
    return Endpoint.find(
        config.base_url, stream=config.stream, timeout_s=config.timeout_s, max_retries=config.max_retries
    )


def make_scene(config: ConstraintsProposeConfig, spec: TaskSpec | None) -> Scene:
    """The picture with what can be referred to: from the simulator, or from files."""
    if spec is None:
        assert config.task is not None and config.image is not None  # the config has checked it
        named = tuple(SceneKeypoint(name=name) for name in config.keypoint_names)
        return scene_of_picture(
            config.image, config.task, read_keypoints(config.keypoints) if config.keypoints else named
        )
    task, goals = config.task or spec.instruction, spec.goal_predicates
    if config.image is not None:
        keypoints = tuple(SceneKeypoint(name=name) for name in spec.keypoint_names)
        return scene_of_picture(config.image, task, keypoints, goals, spec.max_steps)
    view = spawn.call(take_view, spec.suite, spec.task_id, InitStateId.parse(config.init_state))
    return scene_of_view(view, task, goals, spec.max_steps)


def save_question(scene: Scene, config: ConstraintsProposeConfig, out: Path) -> None:
    """Picture and texts exactly as they are sent, for the user to look at."""
    write_bytes_atomic(out.with_suffix(".png"), scene.picture_png)
    texts = readable(first_messages(scene, config.objective))
    write_bytes_atomic(out.with_suffix(".prompt.txt"), texts.encode("utf-8", "replace"))


def fall_back(config: ConstraintsProposeConfig, spec: TaskSpec | None, out: Path, why: str) -> int:
    """Write what the toolkit itself knows of the task, and say that no model was asked.

    Raises:
        ConfigError: The task belongs to no suite, so nothing is known of it.
    """
    if spec is None:
        raise ConfigError(
            f"{why}, and no constraints are stored for a task in words alone; name an endpoint (--base_url, --model), "
            "or write the stages by hand (docs/constraints.md)"
        )
    constraints = toolkit_constraints(spec)
    write_json(out, constraints_data(constraints))
    out.with_suffix(".proposal.json").unlink(missing_ok=True)  # of a model's answer that was here before
    origin = "derived from the task's goal" if constraints.source == "bddl" else "shipped with the toolkit"
    print(f"No model was asked: {why}.")
    print(f"Instead, constraints {origin} (source: {constraints.source}), for no objective in particular:")
    print_stages(constraints)
    print(f"wrote {out}")
    return 0


def constraints_data(constraints: TaskConstraints) -> dict[str, Any]:
    """Plain data as ``load_constraints`` reads it; fields that say nothing are left out."""
    data = {name: value for name, value in dataclasses.asdict(constraints).items() if value}
    data["stages"] = [{name: value for name, value in stage.items() if value} for stage in data["stages"]]
    return data


def provenance(config: ConstraintsProposeConfig, scene: Scene, asking: Asking, proposal: Proposal) -> dict[str, Any]:
    """Everything that led to the constraints but the key: enough to repeat them from the cache."""
    return {
        "format_version": 1,
        "model": asking.settings.model,
        "model_as_served": proposal.turns[-1].answer.completion.model,
        "endpoint": asking.endpoint.base_url or "OpenAI" if asking.endpoint else None,
        "settings": dataclasses.asdict(asking.settings),
        "objective": config.objective,
        "prompt_version": PROMPT_VERSION,
        "init_state": config.init_state if config.suite is not None and config.image is None else None,
        "scene": scene.description(),
        "picture_pixels_sha256": pixels_digest(scene.picture_png),
        "answers": [
            {
                "cache_entry": turn.answer.path.name,
                "time": turn.answer.time,
                "from_cache": turn.from_cache,
                "input_tokens": turn.answer.completion.input_tokens,
                "output_tokens": turn.answer.completion.output_tokens,
            }
            for turn in proposal.turns
        ],
    }


def report(config: ConstraintsProposeConfig, proposal: Proposal, out: Path) -> None:
    """What was asked, what it took, what came, and what to do next."""
    cached = sum(turn.from_cache for turn in proposal.turns)
    repaired = ", the first answer had to be repaired" if len(proposal.turns) > 1 else ""
    print(f"{config.model}: {len(proposal.turns)} answer(s), {cached} of them from the cache{repaired}")
    print(spent(config, proposal.turns))
    print_stages(proposal.constraints)
    print(
        f"wrote {out}; beside it, with the same name: .png and .prompt.txt (what was sent), .proposal.json (its origin)"
    )
    task = "" if config.suite is None else f" --task {config.suite}/{config.task_id}"
    check = shlex.join(["grape", "constraints", "check", str(out)])
    print(f"A proposal is not to be trusted yet: {check} --rollouts RUN{task}")
    named = config.suite is not None and out.name == f"{config.suite}_{config.task_id}.json"
    rename = "" if named else "name it <suite>_<task_id>.json, "
    print(f"then: {rename}grape score RUN --constraints_dir {shlex.quote(str(out.parent))}")


def spent(config: ConstraintsProposeConfig, turns: Sequence[Turn]) -> str:
    """Tokens of this run and, where prices are given, what they cost."""
    tokens = count_tokens(turns)
    if tokens is None:
        return "tokens: the endpoint gave no count"
    line = f"tokens: {tokens[0]} in, {tokens[1]} out"
    if config.price_per_million_input is None or config.price_per_million_output is None:
        return f"{line} (for the cost give --price_per_million_input and --price_per_million_output)"
    cost = (tokens[0] * config.price_per_million_input + tokens[1] * config.price_per_million_output) / 1e6
    return f"{line}, cost {cost:.4f} in the currency of the prices"


def print_stages(constraints: TaskConstraints) -> None:
    """One line for each stage."""
    for number, stage in enumerate(constraints.stages, start=1):
        print(f"  {number}. {stage.name}: done when {stage.done_when}")
