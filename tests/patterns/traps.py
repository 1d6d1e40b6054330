"""The traps of the conformance tables: what separates full support of a pattern from partial support.

Each is proved by exactly one story (`traps:` in its head) or stands in `LATER` with what it waits for. Only patterns
that can be executed have their traps here.
"""

from __future__ import annotations

TRAPS = {
    "1.a": "completing B before A is refused",
    "1.b": "there is no work item B while A runs",
    "2.a": "B and C are both enabled in the same step that completes A",
    "3.a": "D once",
    "3.b": "D is not enabled after one branch",
    "3.c": "a join of three branches",
    "3.d": "one input fed twice must not fire",
    "4.a": "no default and none true is an incident, and the case can go on from it",
    "5.a": "analysis flags a merge whose branches may overlap as unsafe",
    "8.a": "two D work items live at once, with different ids",
    "8.b": "three branches and k tokens give k runs",
    "10.a": "no structure is needed",
    "10.b": "entering again makes a fresh instance",
    "10.c": "10,000 iterations in constant memory",
    "11.a": "a net whose AND-join lacks a token is stuck, and is never reported as completed",
    "22.a": "a net without a terminating path is found at registration",
    "22.b": "cancelling kills every level",
    "22.c": "a depth of 200",
    "33.a": "100 a, then 100 b give 100 J",
    "33.b": "the order of arrivals does not matter",
    "43.a": "the state is completed",
    "43.b": "the explicit end of a sub-net ends only the sub-net",
    "43.c": "completing C afterwards is refused",
}

LATER = {"5.a": "the verification of nets at registration"}
"""Traps that no story can prove yet, and what they wait for."""

ELSEWHERE = {"22.a": "test_registration.py"}
"""Traps about registering rather than running, and the test that proves them."""
