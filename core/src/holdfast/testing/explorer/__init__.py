"""Every order of events of a small world: the machines of `holdfast.sync`, visited state by state.

The simulator draws long runs of large worlds by dice. This searches small worlds to the end: two or
three copies, a few writes, a few faults, and after each event every other one that could come next.
It steps the very classes that run in production; nothing is modelled but what is around them.

What keeps the number of states finite
--------------------------------------

*Time stands still.* Every machine is told that it is 0.0 s, always. A timer is a step of its own: what
the machine compares with the time is set to minus infinity, and a `Tick` follows. So no state differs
from another by what o'clock it is. One ordering is always kept, because reads depend on it (R5): a
copy gives its primary up after the lease that it granted is over. That timers keep this order is
the arithmetic of `holdfast.sync.peers`; the simulator checks it, with clocks that drift.

*Timers come last*, if that is asked for. A timer may run out whenever it is armed, late or early. With
`timers="last"`, timers, starts of processes, the consumer's looking for a primary and the ends of faults
happen only when no message and no answer of the store is on its way but those that are late; to make
those of one link or one node late is a fault (`late`), and then they may come at any moment before or
after. This is a bound on what is searched, not a reduction that loses nothing: two things late by
themselves cost two faults, and `forget_lease` and `skip_reconcile` of the planted bugs are not found
with one fault and one deviation then, though they are with timers at any moment.

*A suspicion without cause is a fault.* Timers that doubt another node fire freely only where there is a
cause: it is down, or the two are `blocked` or `mute`. To make them so costs one of the faults of the
world, and ends at any later moment for nothing. So epochs cannot rise for ever.

*Numbers and names are put together.* Tokens and link ids are the least that nobody uses, instead of
ever new ones; what serves people only (sentences, generations of the superblock) is not told apart.
Epochs, versions of the record and numbers of processes are closed up to a run from the least on, and
nodes change places, so that one state stands for all that differ in nothing else (`symmetry.py`).

*Faults are spent sparingly.* Each state is looked at once, with as many faults left as can be on any
way to it: whatever may follow with fewer may follow with more, since no fault has to happen.

*Ticks and heartbeats that are due follow at once*, as parts of the step that caused them, and a
heartbeat and its answer are one step. What is lost by this are orders in which a lease comes late
though nothing is wrong; those in which it comes too late are there, by the fault `mute`.

Why one state may stand for others
----------------------------------

Let r be a renaming of nodes that keeps the order of epochs and of versions, and adjacent epochs
adjacent. A machine compares epochs and versions, counts an epoch up by one, and compares names; its
step commutes with r, as long as it makes nothing else of them. Three things would break that, and are
dealt with: a record is written as bytes and read back (the record travels along with its bytes, and
the two are compared); the tag of a dirty map is a hash of name and epoch (made anew); epoch 1 is special
(no search begins there). Then s and r(s) have the same successors but for r, both keep the invariants
or neither does, and by induction so do all states behind them. The store takes a compare-and-set only
at the present version, so one that is late and of an older version is as good as none.

Two orders that the machines do see are given up: of members in a record, which stay in the order of
their names, and of links that one primary serves in turn. So of two equal copies the machines may
prefer the one that another run would not; no rule may depend on that. `tests/test_explorer.py` compares
the successors of states with those of their representatives, all states of small worlds with and
without, and a world whose epochs begin at 7,000.

What may happen in any order
----------------------------

Links deliver in order and each on its own; a link that breaks loses what is on its way, at any place;
a process that dies has sent what it has sent, and what it had asked of the store may still happen at
any later time or never. A compare-and-set is asked, done and answered in three steps. Each watcher of
the store may lag. With `slow`, disk work takes steps of its own as well. The consumer asks for its
writes in order, several at a time if they are of different blocks, and loses nothing by itself.

What is checked
---------------

In every state: I1, I2, I3 of the design's section 4, and I5 as if a consumer read every block in every
state. Records only change as R2 and R4 allow. A state that leads nowhere though redundancy is not back
violates I7. Any assertion of the machines counts as well.

What is not here: clocks that drift, power losses torn by sectors, resizes, moves, policies with
deadlines, more than one consumer. The simulator has them.

The number of orders grows exponentially, so a search may be bounded in a second way, by *deviations*:
in each state one step is the usual next one (the first that leads to a state not seen before), and any
other costs a deviation; faults cost none. All runs with at most that many deviations are visited. Few
orders, tried in every combination with faults at every place, find most bugs (delay-bounded scheduling,
Emmi, Qadeer and Rakamaric, POPL 2011).
"""
