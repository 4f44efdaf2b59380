"""How the flows' command lines run a flow and end: results on stdout, a user's mistake as one line, exit code 2."""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer
from prefect import Flow
from prefect.states import State

from stages.errors import UserError


def run(flow: Flow, **parameters: Any) -> Any:
    """Run a flow and return its result, or end the program: 2 for a user's mistake, 1 for any other failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server Prefect started for it ends too
    state: State = flow(**parameters, return_state=True)  # type: ignore[assignment]
    if state.is_completed():
        return state.result()
    error = state.result(raise_on_failure=False)
    print(error if isinstance(error, UserError) else state.message, file=sys.stderr)
    raise typer.Exit(2 if isinstance(error, UserError) else 1)


def show(metrics: dict[str, float]) -> None:
    """Print metrics, one a line."""
    for key, value in metrics.items():
        print(f"{key}\t{value:.6g}")
