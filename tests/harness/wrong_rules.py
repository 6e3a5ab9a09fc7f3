"""Wrong rules: breaks the specification one line at a time, and sees whether TLC finds out.

    python -m tests.harness.wrong_rules              tries them all
    python -m tests.harness.wrong_rules NAME         tries one

A model that holds proves little unless it can fail. Each of these is one rule of the protocol gone
wrong, with the smallest model in which that shows and the invariant that has to say so.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen
from tests.harness import models, tlc


@frozen
class Mutation:
    """A wrong rule: what stands for it in the specification, and in which model it shows."""

    old: str
    new: str
    violated: str
    """The invariant, or in TLC's words the kind of property."""
    constants: Mapping[str, str]
    """What of the model's constants is otherwise."""
    model: str = "small"


RULES: Mapping[str, Mutation] = {
    "a replica answers reads from its window": Mutation(
        '/\\ view[c].st[c] = "in" /\\ ~disk[c].other /\\ ~disk[c].win',
        '/\\ view[c].st[c] = "in" /\\ ~disk[c].other',
        "I5",
        {"Local": "TRUE"},
    ),
    "a write is answered before every copy has it": Mutation(
        "/\\ MayAnswer(p) /\\ pri[p].pend # <<>> /\\ Committed(p, Head(pri[p].pend))",
        "/\\ MayAnswer(p) /\\ pri[p].pend # <<>>",
        "I1",
        {},
    ),
    "what waits for a lost copy is answered before the record drops it": Mutation(
        "Required(p) == Others(p)",
        "Required(p) == {c \\in Others(p) : ~leg[p][c].fault}",
        "I1",
        {},
    ),
    "a copy that the record may count in already is not waited for": Mutation(
        "\\cup {c \\in Copies : leg[p][c].join} \\cup Asked(p)",
        "",
        "I1",
        {"Away": "1", "Faults": "{}", "MaxEpoch": "3"},
    ),
    "a syncing copy is promoted": Mutation(
        'MayPromote(r, c) == /\\ r.st[c] = "in" /\\ ~disk[c].other',
        'MayPromote(r, c) == /\\ r.st[c] # "off" /\\ ~disk[c].other',
        "TypeOK",
        {"Away": "1", "Faults": '{"crash"}'},
    ),
    "reads are served after the lease": Mutation(
        "/\\ ~pri[p].stopped /\\ LeaseHeld(p)",
        "/\\ ~pri[p].stopped",
        "I2",
        {"Faults": '{"isolate"}'},
    ),
    "a copy that the record names does not wait for the end of its promise": Mutation(
        "/\\ epoch[c] < view[c].epoch => Released(c)",
        "",
        "I2",
        {
            "Copies": "{c1, c2}",
            "MaxWrites": "0",
            "Faults": '{"cut", "crash", "late"}',
            "MaxFaults": "2",
            "MaxEpoch": "3",
        },
    ),
    "a new primary serves before it has reconciled": Mutation(
        "LET sus == Suspect(disk[p]) \\/ \\E c \\in Others(p) : leg[p][c].sus",
        "LET sus == FALSE",
        "I3",
        {"Faults": '{"crash"}'},
    ),
    "a read does not wait for the write that it overlaps": Mutation(
        'pri[p].pend[i].k = "f" \\/ Committed(p, pri[p].pend[i])',
        "TRUE",
        "I5",
        {"Faults": '{"crash"}'},
    ),
    "what an absent copy misses is not noted": Mutation(
        'Dirtied(d) == [x \\in Copies |-> IF d.map[x] = "clean" THEN "dirty" ELSE d.map[x]]',
        "Dirtied(d) == d.map",
        "I1",
        {"Away": "1", "Faults": "{}"},
    ),
    "a copy that lost power takes over as if nothing had happened": Mutation(
        'MustPublish(c) == disk[c].lost /\\ view[c].st[c] = "in" /\\ c \\notin view[c].sus',
        "MustPublish(c) == FALSE",
        "I5",
        {"Faults": '{"reboot"}'},
    ),
    "a copy acknowledges a flush that its disk has not carried out": Mutation(
        '[] op.k \\in {"f", "F"} -> [x EXCEPT !.disk = Stable(d)]',
        '[] op.k \\in {"f", "F"} -> x',
        "I4",
        {"Faults": "{}", "MaxFlushes": "1", "Clears": "{FALSE}"},
    ),
    "a copy is dropped while it may read by itself": Mutation(
        "/\\ \\A c \\in InSync(view[p]) \\ InSync(r) : p \\notin disk[c].reads",
        "",
        "I5",
        {"Copies": "{c1, c2}", "Faults": '{"cut"}', "Local": "TRUE"},
    ),
    "a new primary drops a copy that may read by a lease of the one before": Mutation(
        "p \\notin disk[c].reads\n",
        "~(p \\in disk[c].reads /\\ leg[p][c].eq)\n",
        "I5",
        {
            "Copies": "{c1, c2}",
            "Faults": '{"crash", "cut"}',
            "MaxFaults": "2",
            "MaxEpoch": "3",
            "Local": "TRUE",
        },
    ),
    "a disk that lost power takes over by a handover from before": Mutation(
        "r.primary = c /\\ ~disk[c].other /\\ ~disk[c].lost THEN Begun",
        "r.primary = c THEN Begun",
        "I1",
        {"Copies": "{c1, c2}", "Faults": '{"handover", "reboot"}', "MaxFaults": "2"},
    ),
    "a copy that stands still gives promises": Mutation(
        'view[c].primary = p /\\ role[c] = "replica"',
        "view[c].primary = p",
        "I2",
        {"Copies": "{c1, c2}", "Faults": '{"cut"}'},
    ),
    "the store does not compare": Mutation(
        "IF rec = want[c].exp\n",
        "IF TRUE\n",
        "I1",
        {"Copies": "{c1, c2}", "Faults": '{"cut"}', "MaxEpoch": "3"},
    ),
    "a copy follows a primary of an epoch below its own": Mutation(
        "Refuses(c, e) == \\/ e < Max(epoch[c], view[c].epoch)",
        "Refuses(c, e) == \\/ FALSE",
        "I5",
        {"Copies": "{c1, c2}", "Faults": '{"isolate"}'},
    ),
    "a copy that comes back is never synced": Mutation(
        'IF leg[p][c].wants /\\ @[c] = "off" THEN "sync" ELSE @[c]',
        "@[c]",
        "Temporal properties",
        {"Copies": "{c1, c2}"},
        "live",
    ),
    "writing is withdrawn though enough replicas are online": Mutation(
        'view[p].access = "rw" /\\ Online(view[p]) < Least',
        'view[p].access = "rw"',
        "Action property",
        {},
        "large-policy",
    ),
}
"""Name to mutation."""

QUICK = (
    "a write is answered before every copy has it",
    "a syncing copy is promoted",
    "a copy is dropped while it may read by itself",
    "a copy that stands still gives promises",
    "a copy follows a primary of an epoch below its own",
    "the store does not compare",
    "a copy acknowledges a flush that its disk has not carried out",
    "a copy that comes back is never synced",
    "writing is withdrawn though enough replicas are online",
)
"""Those that `make test` tries: one for each invariant that can be asked quickly."""


def outcome_of(name: str) -> tlc.Outcome:
    """Check the specification with one wrong rule."""
    wrong = RULES[name]
    text = models.specification()
    assert text.count(wrong.old) == 1, wrong.old
    config = models.with_constants(models.configuration(wrong.model), wrong.constants)
    with tempfile.TemporaryDirectory(prefix="holdfast-tlc-") as folder:
        return tlc.run(
            {models.MODULE: text.replace(wrong.old, wrong.new)},
            config,
            Path(folder),
            module=models.MODULE,
        )


def main() -> int:
    """Try the rules named on the command line, or all; return the exit code."""
    missing = tlc.what_is_missing()
    if missing:
        sys.stderr.write(f"{missing}\n")
        return 2
    passed = 0
    for name in sys.argv[1:] or RULES:
        outcome = outcome_of(name)
        found = outcome.violated == RULES[name].violated
        passed += not found
        verdict = "found" if found else "NOT FOUND"
        sys.stdout.write(
            f"{name}: {verdict} ({outcome.violated or 'nothing'} violated, {outcome.distinct:,} "
            f"distinct states, {outcome.processor_s:.0f} s of processor time)\n"
        )
        sys.stdout.flush()
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
