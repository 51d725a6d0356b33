"""Where a training run writes, and what is refused there before it starts."""

from __future__ import annotations

from pathlib import Path

from grape.errors import ConfigError


def check_run_folders(run_root_dir: Path, run_name: str, adapter_tmp_dir: Path | None) -> None:
    """Refuse a run name that is no folder's, and two folders of which one would replace the other.

    Args:
        run_root_dir: The run is written to ``<run_root_dir>/<run_name>``.
        run_name: As given, or made from the settings.
        adapter_tmp_dir: The newest adapter replaces ``<adapter_tmp_dir>/<run_name>``; ``None``: it is not kept there.

    Raises:
        ConfigError: With the values and the reason.
    """
    if run_name in ("", ".", "..") or "/" in run_name:
        raise ConfigError(f"run_name={run_name!r}: want the name of one folder, without a slash")
    if adapter_tmp_dir is None:
        return
    run_dir, newest = (run_root_dir / run_name).resolve(), (adapter_tmp_dir / run_name).resolve()
    if run_dir.is_relative_to(newest) or newest.is_relative_to(run_dir):
        raise ConfigError(
            f"the newest adapter would be kept at {newest} and the run at {run_dir}, and one would replace the other; "
            "choose another --adapter_tmp_dir"
        )
