"""The loop, and what it found."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.fuzz.mutation import drawn
from tests.fuzz.targets import Target

SLOW_S: Final = 1.0  # no input of this size may take longer; the machine is shared, so it is tried again


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that is answered with something else than a value or an error of ours, or much too late."""

    target: str
    seed: int
    number: int
    data: bytes
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.target}: {self.problem}\n  input {self.data[:200]!r}\n"
            f"  python -m tests.fuzz --target '{self.target}' --seed {self.seed} --number {self.number}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What feeding one target gave."""

    inputs: int
    accepted: int
    """Inputs that were taken as good."""
    seconds: float
    findings: tuple[Finding, ...]


def input_of(target: Target, seed: int, number: int) -> bytes:
    """The n-th input of a target: always the same."""
    return drawn(Random(f"{seed} {target.name} {number}"), target.examples)


def feed(target: Target, data: bytes) -> tuple[bool, str]:
    """(accepted, what is wrong with the answer)"""
    began = time.process_time()
    accepted, problem = True, ""
    try:
        target.feed(data)
    except target.may_raise:
        accepted = False
    except Exception as error:  # noqa: BLE001  # whatever it is, that is the finding
        accepted, problem = False, repr(error)
    took = time.process_time() - began
    if not problem and took > SLOW_S:
        problem = f"took {took:.1f} s"
    return accepted, problem


def fuzz(target: Target, inputs: int, seed: int, findings_max: int = 10) -> Result:
    """Feed a target so many inputs."""
    began = time.perf_counter()
    accepted = number = 0
    findings: list[Finding] = []
    for number in range(1, inputs + 1):
        data = input_of(target, seed, number)
        good, problem = feed(target, data)
        accepted += good
        if problem.startswith("took"):
            _, problem = feed(target, data)
        if problem:
            findings.append(Finding(target.name, seed, number, data, problem))
            if len(findings) == findings_max:
                break
    return Result(number, accepted, time.perf_counter() - began, tuple(findings))
