"""Examines all families: `python -m tests.families [NAME ...]`; without names it writes the table."""

import asyncio
import logging
import sys
import time

from slime_router.checkup.examination import Examination
from tests.families.catalogue import families, family

logging.disable(logging.WARNING)


def main():
    names = sys.argv[1:]
    chosen = [family(n) for n in names] if names else families()
    tot = bad = 0
    for f in chosen:
        t = time.time()
        try:
            r = asyncio.run(
                Examination(f.tokenizer(), f.chat_template(), f.parsers()).report(f.name)
            )
        except Exception as e:
            if names:
                raise
            print("CRASH", f.name, repr(e)[:200], flush=True)
            continue
        tot += r.turns
        print(f"== {f.name} {time.time() - t:.1f}s", "turns", r.turns, flush=True)
        for v in r.verdicts:
            if v.kind == "exact" and not names:
                continue
            print(
                "  ",
                v.capability,
                "|",
                v.kind,
                "|",
                " // ".join(v.reasons)[: 400 if not names else 2000],
            )
    print(tot)


main()
