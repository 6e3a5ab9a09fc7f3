------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Whether what a group did is what Holdfast.tla allows.  `Seen` is a      *)
(* sequence of runs, each a sequence of states as an observer has written  *)
(* them down, with all that changed in between left out but what it could  *)
(* see.  A run is allowed when steps of the specification lead from each   *)
(* state to the next, and on the way nothing that was seen is anything but *)
(* what it was before or what it is after.                                 *)
(***************************************************************************)
EXTENDS Holdfast, Runs      \* `Runs` is written by tests/harness/traces.py and defines `Seen`.

VARIABLES
    run,        \* Which run is followed.
    at          \* How much of it has been explained.

(* An observer's field is a sequence of values; an empty one was not looked at. *)
Fits(v, field) == field = <<>> \/ \E k \in DOMAIN field : field[k] = v

(* Put in the place of `IsTold`: here it does matter whether a watch was quicker. *)
NeverTold(c) == FALSE

(* What of a copy is looked at. *)
Bytes(c) == disk[c].data
Doubts(c) == Suspect(disk[c])

Matches(o) ==
    /\ rec = o.rec /\ hist.acked = o.acked
    /\ net.cut \subseteq o.cut /\ net.store \subseteq o.store
    /\ \A c \in Copies :
         LET x == o.copy[c] IN
         /\ Fits(role[c], x.role) /\ Fits(view[c], x.view) /\ Fits(epoch[c], x.epoch)
         /\ Fits(Bytes(c), x.data) /\ Fits(Doubts(c), x.doubt)
         /\ pri[c].serving = x.serving
    /\ o.read # <<>> => MayRead(o.read[1]) /\ Bytes(o.read[1]) = o.read[2]

Either(v, one, other) == Fits(v, one) \/ Fits(v, other)

OnTheWay(o, n) ==
    /\ rec \in {o.rec, n.rec} /\ hist.acked \in {o.acked, n.acked}
    /\ net.cut \subseteq (o.cut \cup n.cut) /\ net.store \subseteq (o.store \cup n.store)
    /\ \A c \in Copies :
         LET x == o.copy[c]
             y == n.copy[c]
         IN  /\ Either(role[c], x.role, y.role) /\ Either(view[c], x.view, y.view)
             /\ Either(epoch[c], x.epoch, y.epoch)
             /\ Either(Bytes(c), x.data, y.data) /\ Either(Doubts(c), x.doubt, y.doubt)
             /\ pri[c].serving \in {x.serving, y.serving}

TraceInit == /\ Init /\ run \in DOMAIN Seen /\ at = 1 /\ Matches(Seen[run][1])

Explain == /\ Matches(Seen[run][at + 1]) /\ at' = at + 1
           /\ UNCHANGED <<vars, run>>
           /\ PrintT(<<"explained", run, at'>>)  \* For whoever runs this.

Go == /\ UNCHANGED <<run, at>> /\ Next
      /\ OnTheWay(Seen[run][at], Seen[run][at + 1])'

TraceNext == at < Len(Seen[run]) /\ (Explain \/ Go)

TraceSpec == TraceInit /\ [][TraceNext]_<<vars, run, at>>

(* Violated as soon as the run is explained: that ends the search. *)
Unexplained == at < Len(Seen[run])
=============================================================================
