"""The options of commands that can spread their work over a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..errors import RefactError
from .app import parameters_of, signed

PANEL = "Over a Ray cluster"

Ray = Annotated[
    str | None,
    typer.Option(
        help="Spread the work over a Ray cluster: its address HOST:PORT, 'auto' on one of its machines, or 'local'.",
        rich_help_panel=PANEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=100_000, help="How many; by default as many as there is room for.", rich_help_panel=PANEL),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        min=0, max=1024, help="0.5 puts two workers on a GPU; by default 1 where there are any.", rich_help_panel=PANEL
    ),
]
Cpus = Annotated[
    float | None,
    typer.Option(
        min=0, max=1024, help="By default 1 beside a GPU or where --workers are several, else 2.", rich_help_panel=PANEL
    ),
]
Send = Annotated[
    bool,
    typer.Option(
        "--send-model", help="Send the model to the workers; else each opens its name or path.", rich_help_panel=PANEL
    ),
]


def _options(
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    cpus_per_worker: Cpus = None,
    send_model: Send = False,
) -> None:
    """What can be said of a cluster."""


def with_cluster(command: Callable) -> Callable:
    """The command with those options, which it is given as `cluster`: None where no --ray was."""
    own, more = parameters_of(command, "cluster"), parameters_of(_options)

    def wrapped(**given: Any) -> Any:
        cluster = cluster_of({p.name: given.pop(p.name) for p in more}, given.get("device"))
        return command(**given, cluster=cluster)

    return signed(wrapped, command, [*own, *more])


def cluster_of(asked: dict[str, Any], device: str | None) -> Any:
    """The `Cluster` asked for, or None. Raises RefactError where workers are spoken of and none are asked for."""
    if asked["ray"] is None:
        if said := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value]:
            raise RefactError(f"{said[0]} is about the workers of a cluster: name it with --ray")
        return None
    from ..models.parallel import Cluster

    each = {"gpus": asked["gpus_per_worker"], "cpus": asked["cpus_per_worker"]}
    return Cluster(asked["ray"], asked["workers"], **each, device=device, send=asked["send_model"])
