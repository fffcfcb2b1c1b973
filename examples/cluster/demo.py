"""``make cluster``: understands what was asked for, and shows what it came to. The exit status is 1 if the account is not right."""

from __future__ import annotations

import math
import os
import random
import shutil
import tempfile
from pathlib import Path

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from examples.cluster import chaos
from examples.cluster.run import Wish, cluster, drive
from examples.cluster.stop import ClusterError, stop
from examples.cluster.table import show
from examples.load.places import NoPlace


def main() -> int:
    """Run it; the exit status."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    stop.listen()
    folder = Path(tempfile.mkdtemp(prefix="tenure-cluster-"))
    folder.chmod(0o755)  # for PostgreSQL, which is not root
    status = 2
    try:
        wish = _wish()
        console.print(f"seed {wish.seed}: SEED={wish.seed} make cluster rolls the same dice", highlight=False)
        with cluster(wish, folder, console) as here:
            facts = drive(wish, here, console)
        status = show(facts, console)
    except (ClusterError, NoPlace, SQLAlchemyError) as error:
        wrong = stop.too_early or error  # whatever it was that Ctrl-C broke off
        console.print(f"✗ {wrong}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    finally:
        if status and stop.runs and not stop.too_early:
            kept = Path(tempfile.mkdtemp(prefix="cluster-"))
            for file in (*folder.glob("*.log"), *folder.glob("*.jsonl")):
                shutil.copy(file, kept)
            console.print(f"  what the processes wrote: {kept}", highlight=False, soft_wrap=True)
        shutil.rmtree(folder, ignore_errors=True)
    return status


def _wish() -> Wish:
    asked, seed = os.environ.get("SECONDS") or "20", os.environ.get("SEED") or str(random.randrange(10_000))
    kill = (os.environ.get("KILL") or " ".join(chaos.DEFAULT)).replace(",", " ").split()
    known = (*chaos.DEFAULT, *chaos.SERVERS, chaos.NOTHING)
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ClusterError(f"SECONDS={asked}: give a number of seconds; 0 runs until Ctrl-C.")
    if not seed.isdecimal():
        raise ClusterError(f"SEED={seed}: give a number.")
    if not set(kill) <= set(known):
        raise ClusterError(f"KILL={' '.join(kill)}: give some of {' '.join(known)}.")
    return Wish(seconds, int(seed), kill, os.environ.get("AMQP", ""))
