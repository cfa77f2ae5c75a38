"""Two processes of one run, begun as a launcher begins them, so that each one's end can be looked at."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start_pair(
    program: Path, *words: object, env: Sequence[Mapping[str, str]] = ({}, {})
) -> "list[subprocess.Popen[str]]":
    """Both processes of `python PROGRAM WORDS`; `env`: what each has in its environment besides."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, str(program), *map(str, words)]
    return [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **env[rank]},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def end_pair(pair: "list[subprocess.Popen[str]]", limit: float = 120) -> list[tuple[int, str]]:
    """Exit code, and what was said to stderr, of each; one that does not end is killed."""
    try:
        said = [process.communicate(timeout=limit)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    return [(process.returncode, text) for process, text in zip(pair, said, strict=True)]
