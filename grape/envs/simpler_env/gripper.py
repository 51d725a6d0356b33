"""The Google Robot's gripper, as SIMPLER's published evaluation of OpenVLA drives it."""

from __future__ import annotations

STICKY_STEPS = 15
"""How long a command lasts; 1 for the WidowX, whose gripper has no such rule."""
CHANGE_THRESHOLD = 0.5


class StickyGripper:
    """Openings in [0, 1] (1 open) into the relative commands of the Google Robot: positive closes.

    A command is the opening before minus the opening now, so the first of an episode is 0. One above the threshold is
    repeated until it has been sent ``STICKY_STEPS`` times, whatever the policy says meanwhile.
    Source: SimplerEnv at commit 04fb4a2, ``simpler_env/policies/openvla/openvla_model.py``, ``step``.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what came before: at the start of an episode, and where the instruction changes."""
        self._previous: float | None = None
        self._command, self._num_left = 0.0, 0

    def command(self, opening: float) -> float:
        """The command for the next step."""
        change = 0.0 if self._previous is None else self._previous - opening
        self._previous = opening
        if self._num_left == 0 and abs(change) > CHANGE_THRESHOLD:
            self._command, self._num_left = change, STICKY_STEPS
        if self._num_left == 0:
            return change
        self._num_left -= 1
        return self._command
