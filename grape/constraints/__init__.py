"""Stage constraints: a small safe language, stages as data, their derivation from BDDL, and their evaluation."""

from grape.constraints.bddl import derive_constraints
from grape.constraints.expression import Expression, compile_condition, compile_cost
from grape.constraints.facts import FactTable
from grape.constraints.points import Point, offset_in_frame
from grape.constraints.shipped import shipped_constraints
from grape.constraints.stages import COSTS, Stage, TaskConstraints, load_constraints
from grape.constraints.tracking import StageTrace, evaluate_stages

__all__ = [
    "COSTS",
    "Expression",
    "FactTable",
    "Point",
    "Stage",
    "StageTrace",
    "TaskConstraints",
    "compile_condition",
    "compile_cost",
    "derive_constraints",
    "evaluate_stages",
    "load_constraints",
    "offset_in_frame",
    "shipped_constraints",
]
