"""Runs schedules: python -m tests.simulation --seed 7 --schedules 100 [--profile steps]

A failing seed is told with how to run it again; ``--story`` shows its history, ``--shrink`` fewer faults that still fail."""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of texts: the only order that is left to chance
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedules", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after this much real time; 0: never")
    parser.add_argument("--at-least", type=int, default=0, help="schedules that run even when that time is over")
    parser.add_argument("--profile", help="one family of plans only")
    parser.add_argument("--mutation", help="put a fault back (see mutations.py)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--story", action="store_true", help="the history of failing runs")
    parser.add_argument("--shrink", action="store_true", help="leave out what a failure does not need")
    parser.add_argument("--requests", action="store_true", help="with every request in the history")
    parser.add_argument("--digest", action="store_true", help="a number per run that is the same for the same run")
    parser.add_argument("--repeat", action="store_true", help="run everything twice and compare")
    arguments = parser.parse_args()
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    import logging

    from tests.simulation import profiles, schedules

    logging.disable(logging.CRITICAL)
    if arguments.mutation:
        from tests.simulation import mutations

        mutations.apply(arguments.mutation)
    began, failed, kinds = time.perf_counter(), [], collections.Counter()
    by_profile: collections.Counter[str] = collections.Counter()
    virtual = 0.0
    done = 0
    for seed in range(arguments.seed, arguments.seed + arguments.schedules):
        plan = profiles.plan(seed, arguments.profile)
        result = schedules.run(plan, verbose=arguments.requests)
        done += 1
        virtual += result.virtual_s
        by_profile[plan.profile] += 1
        if arguments.digest:
            print(f"seed {seed}: digest {result.digest}")
        again = profiles.plan(seed, arguments.profile)
        if arguments.repeat and schedules.run(again, verbose=arguments.requests).digest != result.digest:
            print(f"seed {seed} ({plan.profile}) does not repeat itself")
            failed.append(seed)
        if result.findings:
            failed.append(seed)
            kinds.update(f"{plan.profile}/{kind}" for kind in result.kinds)
            _tell(arguments, seed, result)
            if not arguments.keep_going:
                break
        if arguments.seconds and done >= arguments.at_least and time.perf_counter() - began > arguments.seconds:
            break
    real = time.perf_counter() - began
    speed = f"{virtual:.0f} virtual s in {real:.1f} s, {1000 * real / done:.0f} ms each"
    print(f"{done} schedules from seed {arguments.seed}, {speed}; {len(failed)} failed")
    if kinds:
        print("  " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    return bool(failed)


def _tell(arguments: argparse.Namespace, seed: int, result: object) -> None:
    from tests.simulation import schedules

    assert isinstance(result, schedules.Result)
    plan = result.plan
    what = f"{len(result.findings)} findings, {', '.join(result.kinds)}: {result.findings[0][:300]}"
    print(f"seed {seed} ({plan.profile}): {what}")
    mutation = f" --mutation {arguments.mutation}" if arguments.mutation else ""
    print(f"  again: python -m tests.simulation --seed {seed} --profile {plan.profile} --story{mutation}")
    if arguments.shrink:
        wanted = set(result.kinds)
        smaller = schedules.shrunk(plan, lambda each: bool(wanted & set(schedules.run(each).kinds)))
        result = schedules.run(smaller, verbose=arguments.requests)
        print(f"  shrunk from {len(plan.acts)} to {len(smaller.acts)} acts")
    if arguments.story:
        print(schedules.story(result))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
