------------------------------ MODULE Holdfast ------------------------------
(***************************************************************************)
(* One group of Holdfast: copies of a volume that decide for themselves    *)
(* who orders writes and who is counted in, with one small record that is  *)
(* changed by compare-and-set.  The rules R1 to R12 and the invariants I1  *)
(* to I7 are those of docs/protocol.md; README.md beside this file names   *)
(* the function that implements each action.                               *)
(*                                                                         *)
(* The volume is one block, because every promise is made per block.  Its  *)
(* values are the numbers 1, 2, 3, ... in the order in which one consumer  *)
(* writes them; a consumer asks for the next when the last is answered,    *)
(* and asks again, of whoever is primary, until it is (R7).  So "has every *)
(* acknowledged write" is just "holds a value not below the last one       *)
(* acknowledged".                                                          *)
(*                                                                         *)
(* Time is not counted.  A lease is either held or not; it lapses only     *)
(* when it cannot be renewed, and a copy stands only when the lease that   *)
(* it gave has lapsed: that is what lease and margin are for (R5).         *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
    Copies,     \* The copies of the group, one on each node.
    Away,       \* How many copies are offline at the beginning, and lack nothing yet.
    None,       \* No copy; no compare-and-set.
    MaxWrites,  \* How many writes the consumer makes.
    MaxFlushes, \* How many flushes it asks for.
    Faults,     \* The kinds of fault that may happen.
    MaxFaults,  \* How many of them, in all.
    MaxEpoch,   \* Runs are followed up to this epoch.
    Clears,     \* Whether intent is cleared at a commit: {TRUE}, {FALSE}, or either.
    MaxSessions,\* How often a consumer attaches anew (the policy's way back).
    Local,      \* Whether replicas answer reads of their own nodes by themselves.
    Least       \* The policy: fewest online replicas for writing, after the grace.

ASSUME /\ MaxWrites \in Nat /\ MaxFlushes \in Nat /\ MaxFaults \in Nat
       /\ Clears \subseteq BOOLEAN /\ MaxSessions \in Nat /\ Least < Cardinality(Copies)
       /\ Local \in BOOLEAN
       /\ Faults \subseteq {"crash", "reboot", "wipe", "cut", "isolate", "store", "answer",
                         "late", "slow", "stall", "handover"}

VARIABLES
    rec,        \* The group record in the state store.
    view,       \* The record as each copy knows it.
    want,       \* Each copy's compare-and-set under way, or None.
    role,       \* "down", "replica", "candidate", "primary".
    epoch,      \* The highest epoch seen, on disk (R3).
    up,         \* The primary whose link the copy listens to, or None.
    disk,       \* The local copy: bytes, what is known of them, and whether they may be read here.
    pri,        \* What only a primary has.
    leg,        \* A primary's side of the stream to each other copy.
    hist,       \* What the consumer was told (not part of the protocol).
    net         \* What is broken or under way, and how many faults there were.

vars == <<rec, view, want, role, epoch, up, disk, pri, leg, hist, net>>

-----------------------------------------------------------------------------
(* Shapes *)

NoLeg == [ph |-> "closed", q |-> <<>>, done |-> 0, job |-> "none", eq |-> FALSE,
          lv |-> 0, join |-> FALSE, fault |-> FALSE, same |-> FALSE, sus |-> FALSE,
          wants |-> FALSE]
NoLegs == [c \in Copies |-> NoLeg]
NotPrimary == [serving |-> FALSE, recon |-> FALSE, stopped |-> FALSE, pend |-> <<>>,
               lease |-> {}]
NoRecord == [epoch |-> 0, primary |-> None, st |-> [c \in Copies |-> "off"], sus |-> {},
             access |-> "ro", gen |-> 0]
NoMaps == [c \in Copies |-> "none"]

Max(a, b) == IF a > b THEN a ELSE b
InSync(r) == {c \in Copies : r.st[c] = "in"}
Online(r) == Cardinality({c \in Copies : c # r.primary /\ r.st[c] # "off"})
Others(p) == InSync(view[p]) \ {p}
Asked(p) == IF want[p] = None THEN {} ELSE InSync(want[p].new) \ {p}

Connected(a, b) == {a, b} \notin net.cut
StoreUp(c) == c \notin net.store

(* What may differ from the other copies (R6, R10): the window of recent operations, or after a
   restart the regions with intent. *)
Suspect(d) == d.win \/ d.pin

(* Op k with value v behind what is in the stream of a leg. *)
Op(k, v) == [k |-> k, v |-> v]
Push(l, ops) == [l EXCEPT !.q = @ \o ops]
HasData(q) == \E i \in 1..Len(q) : q[i].k \in {"w", "s"}
Has(q, k) == \E i \in 1..Len(q) : q[i].k = k

(* The word that all is committed, for a copy that has anything to forget by it. *)
Told(l, d) == IF Suspect(d) \/ d.mark \/ l.q # <<>> THEN Push(l, <<Op("c", 0)>>) ELSE l

(* Bytes arrive at a copy: intent before data (R10), window (R6), maps of absent copies. *)
Dirtied(d) == [x \in Copies |-> IF d.map[x] = "clean" THEN "dirty" ELSE d.map[x]]

(* What is on stable storage matters only where power may be lost or flushes are asked for. *)
Stable(d) == IF "reboot" \in Faults \/ MaxFlushes > 0 THEN [d EXCEPT !.dur = d.data] ELSE d
Cleared(d) == IF d.mark /\ ~Suspect(d) THEN [Stable(d) EXCEPT !.mark = FALSE] ELSE d
Written(d, v) == [d EXCEPT !.data = v, !.win = TRUE, !.mark = TRUE, !.map = Dirtied(d)]

(* A copy c with disk d follows the record from `old` to `new`: dirty maps begin when a copy is
   seen to leave the in-sync set, with everything in the window marked; they end when it is back. *)
Maps(c, d, old, new) ==
    [x \in Copies |->
        IF x = c \/ new.st[c] # "in" \/ new.st[x] = "in" THEN "none"
        ELSE IF old.st[x] = "in" /\ old.st[c] = "in"
             THEN IF Suspect(d) THEN "dirty" ELSE "clean"
             ELSE d.map[x]]
Adopted(c, d, old, new) == [d EXCEPT !.map = Maps(c, d, old, new)]

(* R4, and I4: a copy that lost power takes over only when every in-sync copy did.  R8: a disk that
   the record does not name is not the copy that it counts in. *)
MayPromote(r, c) == /\ r.st[c] = "in" /\ ~disk[c].other
                    /\ c \in r.sus => InSync(r) \subseteq r.sus

(* A copy that lost power and has not been synced since: what it lacks is known to be lacking. *)
Whole(c) == rec.st[c] = "in" /\ ~disk[c].lost /\ ~disk[c].other

(* Whose acknowledgements an acknowledgement needs (R1): the in-sync set, a copy that has caught up
   and is about to join, and whoever a compare-and-set under way may already have made in sync. *)
Required(p) == Others(p) \cup {c \in Copies : leg[p][c].join} \cup Asked(p)

(* R5: whether c answers p's heartbeat with a promise.  A copy that stands for primary, or is one,
   gives none at its own epoch or below. *)
Known(c) == Max(epoch[c], view[c].epoch)
Grants(p, c) ==
    /\ role[p] = "primary" /\ role[c] # "down" /\ Connected(p, c)
    /\ \/ view[p].epoch > Known(c)
       \/ view[p].epoch = Known(c) /\ view[c].primary = p /\ role[c] = "replica"

LeaseHeld(p) == (Others(p) \cup Asked(p)) \subseteq pri[p].lease
MayAnswer(p) == role[p] = "primary" /\ pri[p].serving /\ ~pri[p].stopped /\ LeaseHeld(p)

Committed(p, op) ==
    \A c \in Required(p) : \A i \in 1..Len(leg[p][c].q) : leg[p][c].q[i] # op
MayRead(p) == MayAnswer(p) /\ \A i \in 1..Len(pri[p].pend) :
                                  pri[p].pend[i].k = "f" \/ Committed(p, pri[p].pend[i])

(* A replica answers reads by itself (decision 0014) while it has a read lease, whatever has become
   of its primary meanwhile; and never from its window.  `reads` names the copies that know of the
   lease, because they gave it or it counts on their promise; it is empty when there is none. *)
MayReadHere(c) ==
    /\ role[c] = "replica" /\ up[c] # None /\ disk[c].reads # {}
    /\ view[c].st[c] = "in" /\ ~disk[c].other /\ ~disk[c].win

-----------------------------------------------------------------------------
(* Some primary serves with every copy in sync, but for those that are away and up to return. *)
Init ==
    /\ \E p \in Copies, away \in SUBSET Copies :
         LET r == [epoch |-> 1, primary |-> p, sus |-> {}, access |-> "rw", gen |-> 0,
                   st |-> [c \in Copies |-> IF c \in away THEN "off" ELSE "in"]]
             others == Copies \ (away \cup {p})
             clean == [x \in Copies |-> IF x \in away THEN "clean" ELSE "none"]
         IN  /\ Cardinality(away) = Away /\ p \notin away
             /\ rec = r
             /\ view = [c \in Copies |-> r]
             /\ role = [c \in Copies |-> IF c = p THEN "primary" ELSE "replica"]
             /\ up = [c \in Copies |-> IF c \in others THEN p ELSE None]
             /\ pri = [c \in Copies |->
                         IF c = p THEN [NotPrimary EXCEPT !.serving = TRUE, !.recon = TRUE,
                                                          !.lease = others]
                         ELSE NotPrimary]
             /\ leg = [c \in Copies |-> [x \in Copies |->
                         IF c = p /\ x \in others
                         THEN [NoLeg EXCEPT !.ph = "stream", !.eq = TRUE, !.same = TRUE]
                         ELSE NoLeg]]
             /\ disk = [c \in Copies |->
                         [data |-> 0, dur |-> 0, win |-> FALSE, mark |-> FALSE, pin |-> FALSE,
                          lost |-> FALSE, begun |-> FALSE, other |-> FALSE, reads |-> {},
                          map |-> IF c \in away THEN NoMaps ELSE clean]]
    /\ want = [c \in Copies |-> None]
    /\ epoch = [c \in Copies |-> 1]
    /\ hist = [issued |-> 0, acked |-> 0, kept |-> 0, seen |-> 0, flushed |-> 0, flushes |-> 0]
    /\ net = [cut |-> {}, store |-> {}, late |-> {}, faults |-> 0,
              word |-> [c \in Copies |-> None]]

(* A sync begins (R8).  A dirty map that names nothing and a copy that suspects nothing need no
   comparison; without a map the hash tree compares everything. *)
Syncing(p, l, map) ==
    LET needs == map # "clean" \/ l.sus
    IN  [l EXCEPT !.ph = "stream", !.wants = FALSE, !.sus = FALSE,
                  !.job = IF needs THEN "compare" ELSE "sent",
                  !.q = IF needs THEN <<Op("b", 0)>> ELSE <<Op("b", 0), Op("F", 0)>>]

-----------------------------------------------------------------------------
(* Consumers *)

(* A write is taken by a primary: to its own copy and into every stream. *)
Write(p) ==
    /\ role[p] = "primary" /\ pri[p].serving /\ ~pri[p].stopped /\ view[p].access = "rw"
    /\ \/ hist.issued = hist.acked /\ hist.issued < MaxWrites
       \/ hist.issued > hist.acked  \* Asked again (R7).
    /\ LET v == hist.acked + 1
           op == Op("w", v)
       IN  /\ \A i \in 1..Len(pri[p].pend) : pri[p].pend[i] # op
           /\ hist' = [hist EXCEPT !.issued = v]
           /\ disk' = [disk EXCEPT ![p] = Written(@, v)]
           /\ pri' = [pri EXCEPT ![p].pend = Append(@, op)]
           /\ leg' = [leg EXCEPT ![p] = [c \in Copies |->
                IF @[c].ph = "stream" \/ c \in Others(p) \cup Asked(p)
                THEN Push(@[c], <<op>>) ELSE @[c]]]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, net>>

(* A consumer asks for everything that was acknowledged to be put on stable storage (R1). *)
Flush(p) ==
    /\ role[p] = "primary" /\ pri[p].serving /\ ~pri[p].stopped
    /\ hist.flushes < MaxFlushes /\ hist.flushed < hist.acked
    /\ \A i \in 1..Len(pri[p].pend) : pri[p].pend[i].k # "f"
    /\ LET op == Op("f", hist.acked)
       IN  /\ hist' = [hist EXCEPT !.flushes = @ + 1]
           /\ pri' = [pri EXCEPT ![p].pend = Append(@, op)]
           /\ leg' = [leg EXCEPT ![p] = [c \in Copies |->
                IF @[c].ph = "stream" \/ c \in Others(p) \cup Asked(p)
                THEN Push(@[c], <<op>>) ELSE @[c]]]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, net>>

(* The oldest request is answered, once every copy that counts has it and the lease holds; when
   nothing is left, the copies are told the commit and forget their windows. *)
Answer(p) ==
    /\ MayAnswer(p) /\ pri[p].pend # <<>> /\ Committed(p, Head(pri[p].pend))
    /\ LET op == Head(pri[p].pend)
           last == Len(pri[p].pend) = 1
           f == IF op.k = "f" THEN Stable(disk[p]) ELSE disk[p]
           d == IF last THEN [f EXCEPT !.win = FALSE] ELSE f
       IN  /\ pri' = [pri EXCEPT ![p].pend = Tail(@)]
           /\ hist' = IF op.k = "w"
                      THEN [hist EXCEPT !.acked = Max(@, op.v), !.kept = Max(@, op.v),
                                        !.seen = Max(@, op.v)]
                      ELSE [hist EXCEPT !.flushed = Max(@, op.v)]
           /\ \E clear \in Clears : disk' = [disk EXCEPT ![p] = IF clear THEN Cleared(d) ELSE d]
           /\ leg' = IF ~last THEN leg
                     ELSE [leg EXCEPT ![p] = [c \in Copies |->
                            IF @[c].ph = "stream" THEN Told(@[c], disk[c]) ELSE @[c]]]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, net>>

(* A read of the primary's own copy; it waits while it overlaps a write that is not committed. *)
Read(p) ==
    /\ MayRead(p) /\ disk[p].data > hist.seen
    /\ hist' = [hist EXCEPT !.seen = disk[p].data]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, leg, net>>

ReadHere(c) ==
    /\ MayReadHere(c) /\ disk[c].data > hist.seen
    /\ hist' = [hist EXCEPT !.seen = disk[c].data]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, leg, net>>

-----------------------------------------------------------------------------
(* Leases (R5) *)

(* Heartbeats were answered: every promise that is to be had. *)
Beat(p) ==
    LET given == {c \in Others(p) \cup {x \in Copies : leg[p][x].join} : Grants(p, c)}
    IN  /\ role[p] = "primary" /\ ~(given \subseteq pri[p].lease)
        /\ pri' = [pri EXCEPT ![p].lease = @ \cup given]
        /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, leg, hist, net>>

(* The lease ran out on what was promised and cannot be renewed. *)
Lapse(p) ==
    LET kept == {c \in pri[p].lease : Grants(p, c)}
    IN  /\ role[p] = "primary" /\ kept # pri[p].lease
        /\ pri' = [pri EXCEPT ![p].lease = kept]
        /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, leg, hist, net>>

(* A primary lets an in-sync copy answer reads by itself, for as long as its own lease lasts. *)
LetRead(p, c) ==
    LET known == {p} \cup Others(p) \cup Asked(p)
        l == leg[p][c]
    IN  /\ Local /\ MayAnswer(p) /\ c \in Others(p) /\ disk[c].reads # known
        /\ l.ph = "stream" /\ l.eq /\ l.same /\ ~l.fault
        /\ IF want[p] = None THEN TRUE ELSE c \in InSync(want[p].new)
        /\ role[c] = "replica" /\ up[c] = p /\ Connected(p, c) /\ view[c].epoch = view[p].epoch
        /\ disk' = [disk EXCEPT ![c].reads = known]
        /\ UNCHANGED <<rec, view, want, role, epoch, up, pri, leg, hist, net>>

(* A read lease is over, or the copy has noticed that its link is gone. *)
ReadsOver(c) ==
    /\ disk[c].reads # {}
    /\ disk' = [disk EXCEPT ![c].reads = {}]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, pri, leg, hist, net>>

(* What a copy has promised is over, and so is every read lease that counts on it. *)
Released(c) == \A x \in Copies : c \notin pri[x].lease /\ ~Grants(x, c) /\ c \notin disk[x].reads

-----------------------------------------------------------------------------
(* A copy follows its primary *)

StepDown(c) == /\ pri' = [pri EXCEPT ![c] = NotPrimary]
               /\ leg' = [leg EXCEPT ![c] = NoLegs]

(* What a primary is at the beginning: it knows nothing of the others (R6). *)
Begun(c, r) == /\ role' = [role EXCEPT ![c] = "primary"]
               /\ up' = [up EXCEPT ![c] = None]
               /\ epoch' = [epoch EXCEPT ![c] = r.epoch]
               /\ pri' = [pri EXCEPT ![c] = NotPrimary]
               /\ leg' = [leg EXCEPT ![c] = NoLegs]

(* A copy that was synced by this very process is in sync by the record.  It equals the primary; but
   a write that it had and that was not committed then may still be missing elsewhere, so what was
   pinned stays suspect until the next commit, unless all is committed (`clear`). *)
Joined(c, d, r, clear) ==
    IF r.st[c] = "in" /\ d.begun
    THEN [d EXCEPT !.win = @ \/ (d.pin /\ ~clear), !.pin = FALSE, !.lost = FALSE, !.begun = FALSE]
    ELSE d

(* One message of the stream: r is the record that an epoch change brings. *)
Apply(c, x, op, r, clear) ==
    LET d == x.disk IN
    CASE op.k \in {"w", "s"} -> [x EXCEPT !.disk = Written(d, op.v)]
      [] op.k \in {"f", "F"} -> [x EXCEPT !.disk = Stable(d)]
      [] op.k = "c" -> [x EXCEPT !.disk.win = FALSE]
      [] op.k = "b" -> [x EXCEPT !.disk.begun = TRUE, !.disk.other = FALSE,
                                 !.disk.pin = Suspect(d),
                                 !.disk.win = FALSE, !.disk.map = NoMaps]
      [] op.k = "e" -> [x EXCEPT !.view = r, !.epoch = r.epoch,
                                 !.disk = [Adopted(c, Joined(c, d, r, clear), x.view, r)
                                           EXCEPT !.reads = {}]]

RECURSIVE ApplyAll(_, _, _, _, _)
ApplyAll(c, x, ops, r, clear) ==
    IF ops = <<>> THEN x
    ELSE ApplyAll(c, Apply(c, x, Head(ops), r, clear), Tail(ops), r, clear)

(* Everything that is in the stream is applied.  (In parts as well: what is sent later is another
   step.)  Intent may be cleared behind a commit, and then a flush has gone before (R10). *)
Deliver(p, c) ==
    LET l == leg[p][c]
        ops == SubSeq(l.q, l.done + 1, Len(l.q))
    IN  /\ role[p] = "primary" /\ role[c] = "replica" /\ up[c] = p /\ Connected(p, c)
        /\ l.ph = "stream" /\ ops # <<>>
        /\ \E clear \in Clears :
             LET was == [disk |-> disk[c], view |-> view[c], epoch |-> epoch[c]]
                 x == ApplyAll(c, was, ops, view[p], clear)
             IN  /\ disk' = [disk EXCEPT ![c] =
                      IF clear /\ Has(ops, "c") THEN Cleared(x.disk) ELSE x.disk]
                 /\ view' = [view EXCEPT ![c] = x.view]
                 /\ epoch' = [epoch EXCEPT ![c] = x.epoch]
        /\ leg' = [leg EXCEPT ![p][c] =
             IF \E i \in 1..Len(l.q) : l.q[i].k \in {"w", "s", "f", "F"}
             THEN [l EXCEPT !.done = Len(l.q)] ELSE [l EXCEPT !.q = <<>>, !.done = 0]]
        /\ UNCHANGED <<rec, want, role, up, pri, hist, net>>

(* The primary learns what c has applied.  A sync ends with the word that all of it is committed,
   unless a request is under way, whose answer brings that word. *)
RecvAck(p, c) ==
    /\ role[p] = "primary" /\ leg[p][c].ph = "stream" /\ leg[p][c].done > 0
    /\ LET l == leg[p][c]
           q == SubSeq(l.q, l.done + 1, Len(l.q))
           \* A copy is counted on only when it has what was answered, or read, without it.
           ended == /\ l.job = "sent" /\ ~Has(q, "s") /\ ~Has(q, "F")
                    /\ \A i \in 1..Len(q) : q[i].k = "w" => ~Committed(p, q[i])
           l2 == [l EXCEPT !.q = q, !.done = 0]
       IN  leg' = [leg EXCEPT ![p][c] =
               IF ~ended THEN l2
               ELSE IF view[p].st[c] = "in" THEN [l2 EXCEPT !.job = "none", !.eq = TRUE]
               ELSE [l2 EXCEPT !.job = "equal", !.join = ~l.fault,
                               !.q = IF pri[p].pend = <<>> THEN @ \o <<Op("c", 0)>> ELSE @]]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, hist, net>>


-----------------------------------------------------------------------------
(* Compare-and-set: asked for, carried out by the store, answered.  Between the last two the record
   says something that its author does not know yet.  An answer may be lost; the same compare-and-set
   is then asked for again until the store says what became of it (R9).  When a copy takes over that
   lost power, because all of them did, only what was flushed was promised (I4). *)

Ask(c, new) == want' = [want EXCEPT ![c] = [exp |-> view[c], new |-> new, st |-> "asked"]]

StoreApply(c) ==
    /\ want[c] # None /\ want[c].st = "asked" /\ StoreUp(c)
    /\ IF rec = want[c].exp
       THEN /\ rec' = want[c].new /\ want' = [want EXCEPT ![c].st = "won"]
            /\ hist' = IF rec'.primary \notin rec.sus THEN hist
                       ELSE [hist EXCEPT !.kept = hist.flushed, !.seen = hist.flushed]
       ELSE /\ want' = [want EXCEPT ![c].st = IF rec = want[c].new THEN "won" ELSE "lost"]
            /\ UNCHANGED <<rec, hist>>
    /\ UNCHANGED <<view, role, epoch, up, disk, pri, leg, net>>

(* The legs after the primary p won the record `new`. *)
LegAfter(p, c, new) ==
    LET l == leg[p][c]
        old == view[p]
        told == IF new.epoch # old.epoch /\ l.ph = "stream" THEN Push(l, <<Op("e", 0)>>) ELSE l
    IN  IF c = p \/ (new.st[c] = "off" /\ old.st[c] # "off") THEN NoLeg
        ELSE IF new.st[c] = "in" /\ old.st[c] # "in"
             THEN [told EXCEPT !.eq = TRUE, !.join = FALSE, !.job = "none"]
        ELSE IF new.st[c] = "sync" /\ old.st[c] = "off" /\ l.wants
             THEN Syncing(p, l, disk[p].map[c])
        ELSE told

WonAsPrimary(p) ==
    LET new == want[p].new IN
    /\ role[p] = "primary" /\ want[p].st = "won"
    /\ want' = [want EXCEPT ![p] = None]
    /\ view' = [view EXCEPT ![p] = new]
    /\ epoch' = [epoch EXCEPT ![p] = new.epoch]
    /\ disk' = [disk EXCEPT ![p] = Adopted(p, @, view[p], new)]
    /\ IF new.primary # p
       THEN /\ StepDown(p) /\ role' = [role EXCEPT ![p] = "replica"]
            /\ net' = [net EXCEPT !.word = [c \in Copies |->
                 IF up[c] = p /\ leg[p][c].ph \in {"ready", "stream"} THEN new ELSE @[c]]]
       ELSE /\ leg' = [leg EXCEPT ![p] = [c \in Copies |-> LegAfter(p, c, new)]]
            /\ pri' = [pri EXCEPT ![p].lease = IF new.epoch # view[p].epoch THEN {} ELSE @]
            /\ UNCHANGED <<role, net>>
    /\ UNCHANGED <<rec, up, hist>>

WonAsCandidate(c) ==
    LET new == want[c].new IN
    /\ role[c] = "candidate" /\ want[c].st = "won"
    /\ want' = [want EXCEPT ![c] = None]
    /\ view' = [view EXCEPT ![c] = new]
    /\ disk' = [disk EXCEPT ![c] = Adopted(c, @, view[c], new)]
    /\ Begun(c, new)
    /\ UNCHANGED <<rec, hist, net>>

WonAsReplica(c) ==
    /\ role[c] = "replica" /\ want[c].st = "won"
    /\ want' = [want EXCEPT ![c] = None]
    /\ view' = [view EXCEPT ![c] = want[c].new]
    /\ UNCHANGED <<rec, role, epoch, up, disk, pri, leg, hist, net>>

Won(c) == want[c] # None /\ (WonAsPrimary(c) \/ WonAsCandidate(c) \/ WonAsReplica(c))

(* The record r was read or watched, or came as the answer to a compare-and-set that lost.  A copy
   that had lost power and was synced since may learn so sooner than by the stream. *)
TakeRecord(c, r) ==
    /\ view' = [view EXCEPT ![c] = r]
    /\ \E clear \in Clears : disk' = [disk EXCEPT ![c] =
         Adopted(c, IF @.lost /\ role[c] # "primary" /\ r.epoch >= epoch[c]
                    THEN Joined(c, @, r, clear) ELSE @, view[c], r)]
    /\ IF role[c] = "primary"
       THEN IF r.primary # c \/ r.epoch > view[c].epoch
            THEN StepDown(c) /\ role' = [role EXCEPT ![c] = "replica"]
            ELSE /\ pri' = [pri EXCEPT ![c].stopped = FALSE]
                 /\ leg' = leg /\ role' = role
       ELSE /\ role' = [role EXCEPT ![c] =
                 IF r.epoch # view[c].epoch \/ r.primary # view[c].primary THEN "replica" ELSE @]
            /\ UNCHANGED <<pri, leg>>
    /\ UNCHANGED <<epoch, up>>

Lost(c) ==
    /\ want[c] # None /\ want[c].st = "lost" /\ StoreUp(c)
    /\ want' = [want EXCEPT ![c] = None]
    /\ TakeRecord(c, rec)
    /\ UNCHANGED <<rec, hist, net>>

(* The stream is about to tell the copy what the record says, or has done so.  Whether a watch is
   quicker makes no difference then, and is not followed. *)
IsTold(c) == LET p == up[c] IN
    /\ role[p] = "primary" /\ Connected(p, c) /\ leg[p][c].ph = "stream"
    /\ view[p].primary = rec.primary /\ view[p].epoch = rec.epoch

(* A watch, or a read after a refusal. *)
SeeRecord(c) ==
    /\ role[c] \in {"replica", "primary"} /\ want[c] = None /\ StoreUp(c) /\ rec # view[c]
    /\ IF role[c] = "replica" /\ up[c] # None THEN rec.epoch >= epoch[c] /\ ~IsTold(c) ELSE TRUE
    /\ TakeRecord(c, rec)
    /\ UNCHANGED <<rec, want, hist, net>>

-----------------------------------------------------------------------------
(* Taking over (R4, R5) *)

(* A copy that lost power says so in the record before it may do anything else (I4). *)
MustPublish(c) == disk[c].lost /\ view[c].st[c] = "in" /\ c \notin view[c].sus

PublishSuspect(c) ==
    /\ role[c] = "replica" /\ want[c] = None /\ MustPublish(c)
    /\ Ask(c, [view[c] EXCEPT !.sus = @ \cup {c}])
    /\ UNCHANGED <<rec, view, role, epoch, up, disk, pri, leg, hist, net>>

(* Silence for longer than the lease; from now on the old primary gets no promise and no ack. *)
Stand(c) ==
    LET p == view[c].primary IN
    /\ role[c] = "replica" /\ want[c] = None /\ ~MustPublish(c) /\ MayPromote(view[c], c)
    /\ p # c => c \notin pri[p].lease /\ ~Grants(p, c) /\ \A x \in Copies : c \notin disk[x].reads
    \* Named by a request of a process that died: the next one may have promised something.
    /\ epoch[c] < view[c].epoch => Released(c)
    /\ role' = [role EXCEPT ![c] = "candidate"]
    /\ up' = [up EXCEPT ![c] = None]
    /\ disk' = [disk EXCEPT ![c].reads = {}]
    /\ net' = [net EXCEPT !.word[c] = None]
    /\ UNCHANGED <<rec, view, want, epoch, pri, leg, hist>>

(* A candidate reads the record; if it still is what made it stand, it asks for the group. *)
Promote(c) ==
    /\ role[c] = "candidate" /\ want[c] = None /\ StoreUp(c)
    /\ IF rec.epoch = view[c].epoch /\ rec.primary = view[c].primary /\ MayPromote(rec, c)
       THEN /\ view' = [view EXCEPT ![c] = rec]
            /\ disk' = [disk EXCEPT ![c] = Adopted(c, @, view[c], rec)]
            /\ want' = [want EXCEPT ![c] =
                 [exp |-> rec, st |-> "asked",
                  new |-> [rec EXCEPT !.epoch = @ + 1, !.primary = c, !.sus = @ \ {c, rec.primary},
                                      !.st[rec.primary] = IF rec.primary = c THEN "in" ELSE "off"]]]
            /\ role' = role
       ELSE /\ view' = [view EXCEPT ![c] = rec]
            /\ disk' = [disk EXCEPT ![c] = Adopted(c, @, view[c], rec)]
            /\ role' = [role EXCEPT ![c] = "replica"]
            /\ want' = want
    /\ UNCHANGED <<rec, epoch, up, pri, leg, hist, net>>

(* The word of a handover arrives by the stream of the primary that handed over: at the copy that is
   primary now, or at another one, which then knows the epoch.  A disk that is another one by now, or
   has lost power since, was not meant. *)
TakeOver(p, c) ==
    /\ role[c] = "replica" /\ want[c] = None /\ up[c] = p /\ Connected(p, c) /\ net.word[c] # None
    /\ net' = [net EXCEPT !.word[c] = None]
    /\ LET r == net.word[c] IN
       IF r.epoch <= epoch[c] THEN UNCHANGED <<view, disk, epoch, role, up, pri, leg>>
       ELSE /\ view' = [view EXCEPT ![c] = r]
            /\ disk' = [disk EXCEPT ![c] = [Adopted(c, @, view[c], r) EXCEPT !.reads = {}]]
            /\ IF r.primary = c /\ ~disk[c].other /\ ~disk[c].lost THEN Begun(c, r)
               ELSE /\ epoch' = [epoch EXCEPT ![c] = r.epoch]
                    /\ UNCHANGED <<role, up, pri, leg>>
    /\ UNCHANGED <<rec, want, hist>>

-----------------------------------------------------------------------------
(* Legs: presenting, reconciling, syncing (R3, R6, R8) *)

Refuses(c, e) == \/ e < Max(epoch[c], view[c].epoch)
                 \/ role[c] = "primary" /\ e = epoch[c]
                 \/ role[c] = "candidate" /\ want[c] # None

(* The primary p opens a link to c, and c presents itself. *)
Attach(p, c) ==
    /\ role[p] = "primary" /\ p # c /\ role[c] # "down" /\ Connected(p, c)
    /\ ~leg[p][c].fault
    \* The link of a sync that broke is a fault first, so that nothing that was sent is forgotten.
    /\ \/ leg[p][c].ph = "closed"
       \/ up[c] # p /\ (leg[p][c].ph = "ready" \/ view[p].st[c] = "in")
    /\ ~Refuses(c, view[p].epoch)
    /\ \E clear \in Clears :
       LET r == view[p]
           d == [Adopted(c, Joined(c, disk[c], r, clear), view[c], r) EXCEPT !.reads = {}]
           l == leg[p][c]
           left == SubSeq(l.q, l.done + 1, Len(l.q))
           shown == [NoLeg EXCEPT !.ph = "ready", !.same = TRUE, !.sus = Suspect(d) \/ d.other]
           now == IF r.st[c] = "in"
                  THEN IF d.other THEN [shown EXCEPT !.fault = TRUE]
                       ELSE IF ~pri[p].serving THEN shown
                       ELSE IF l.eq /\ l.same
                            THEN [l EXCEPT !.ph = "stream", !.q = left, !.done = 0]
                            ELSE [l EXCEPT !.ph = "ready", !.fault = TRUE]
                  ELSE IF r.st[c] = "sync" THEN Syncing(p, shown, disk[p].map[c])
                       ELSE [shown EXCEPT !.wants = TRUE]
       IN  /\ view' = [view EXCEPT ![c] = r]
           /\ epoch' = [epoch EXCEPT ![c] = r.epoch]
           /\ disk' = [disk EXCEPT ![c] = d]
           /\ role' = [role EXCEPT ![c] = "replica"]
           /\ up' = [up EXCEPT ![c] = p]
           /\ want' = IF role[c] = "primary" THEN [want EXCEPT ![c] = None] ELSE want
           /\ pri' = IF role[c] = "primary" THEN [pri EXCEPT ![c] = NotPrimary] ELSE pri
           /\ leg' = [leg EXCEPT ![c] = IF role[c] = "primary" THEN NoLegs ELSE @,
                                 ![p][c] = now]
    /\ net' = [net EXCEPT !.word[c] = None]
    /\ UNCHANGED <<rec, hist>>

(* R6: every in-sync copy has presented itself; what any of them suspects is compared. *)
Reconcile(p) ==
    /\ role[p] = "primary" /\ ~pri[p].serving
    /\ \A c \in Others(p) : leg[p][c].ph \in {"ready", "stream"}
    /\ \/ ~pri[p].recon
       \/ \E c \in Others(p) : leg[p][c].job = "none" /\ ~leg[p][c].eq
    /\ LET sus == Suspect(disk[p]) \/ \E c \in Others(p) : leg[p][c].sus
       IN  /\ leg' = [leg EXCEPT ![p] = [c \in Copies |->
                IF c \in Others(p)
                THEN [@[c] EXCEPT !.ph = "stream", !.job = IF sus THEN "compare" ELSE "none",
                                  !.eq = ~sus]
                ELSE @[c]]]
           /\ disk' = IF sus THEN [disk EXCEPT ![p].map = Dirtied(disk[p])] ELSE disk
    /\ pri' = [pri EXCEPT ![p].recon = TRUE]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, hist, net>>

Serve(p) ==
    /\ role[p] = "primary" /\ ~pri[p].serving /\ pri[p].recon /\ LeaseHeld(p)
    /\ \A c \in Others(p) : leg[p][c].eq /\ leg[p][c].ph = "stream"
    /\ pri' = [pri EXCEPT ![p].serving = TRUE]
    /\ disk' = [disk EXCEPT ![p].pin = FALSE, ![p].lost = FALSE, ![p].win = FALSE]
    /\ leg' = [leg EXCEPT ![p] = [c \in Copies |->
         IF c \in Others(p) THEN Told([@[c] EXCEPT !.sus = FALSE], disk[c]) ELSE @[c]]]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, hist, net>>

(* A hash of each side, taken at any two moments. *)
Hash(p, c) ==
    /\ role[p] = "primary" /\ leg[p][c].ph = "stream" /\ leg[p][c].job = "compare"
    /\ leg' = [leg EXCEPT ![p][c].job = "hashed", ![p][c].lv = disk[p].data]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, hist, net>>

Compare(p, c) ==
    /\ role[p] = "primary" /\ leg[p][c].ph = "stream" /\ leg[p][c].job = "hashed"
    /\ up[c] = p /\ role[c] = "replica" /\ Connected(p, c) /\ ~leg[p][c].fault
    /\ view[p].st[c] = "sync" => disk[c].begun
    /\ leg' = [leg EXCEPT ![p][c] =
         IF @.lv # disk[c].data THEN [@ EXCEPT !.job = "send", !.lv = 0]
         ELSE IF view[p].st[c] = "in" THEN [@ EXCEPT !.job = "none", !.eq = TRUE, !.lv = 0]
         ELSE Push([@ EXCEPT !.job = "sent", !.lv = 0], <<Op("F", 0)>>)]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, hist, net>>

(* The primary's bytes are read and enqueued while writes are held. *)
SendRun(p, c) ==
    /\ role[p] = "primary" /\ leg[p][c].ph = "stream" /\ leg[p][c].job = "send"
    /\ ~leg[p][c].fault
    /\ leg' = [leg EXCEPT ![p][c] =
         Push([@ EXCEPT !.job = "sent"],
              <<Op("s", disk[p].data)>> \o (IF view[p].st[c] = "in" THEN <<>> ELSE <<Op("F", 0)>>))]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, hist, net>>

(* R12 and R8: what makes a primary give up a copy.  One that refuses the lease because it has seen a
   newer record than its primary is not silent, and not given up. *)
Gone(p, c) == ~Connected(p, c) \/ role[c] = "down" \/ up[c] # p \/ ~leg[p][c].same

LegFault(p, c) ==
    LET l == leg[p][c] IN
    /\ role[p] = "primary" /\ p # c /\ ~l.fault /\ view[p].st[c] # "off"
    /\ IF view[p].st[c] = "in"
       THEN (c \notin pri[p].lease /\ ~Grants(p, c) /\ Gone(p, c)) \/ c \in view[p].sus
       ELSE Gone(p, c)
    /\ leg' = [leg EXCEPT ![p][c] = [@ EXCEPT !.fault = TRUE, !.join = FALSE]]
    /\ disk' = IF view[p].st[c] = "sync" /\ l.job \in {"send", "sent", "equal"}
               THEN [disk EXCEPT ![p].map[c] =
                       IF l.job = "send" \/ HasData(l.q) THEN "dirty" ELSE "clean"]
               ELSE disk
    /\ UNCHANGED <<rec, view, want, role, epoch, up, pri, hist, net>>

-----------------------------------------------------------------------------
(* What a primary asks the record to be *)

Free(p) == role[p] = "primary" /\ want[p] = None

(* What is asked for is one function of what is: the failed copies out (R2), then those that caught
   up in, then those that came back marked as syncing. *)
Dropped(p, r) ==
    LET gone == {c \in Copies : leg[p][c].fault /\ r.st[c] # "off"}
    IN  [r EXCEPT !.epoch = @ + (IF gone \cap InSync(r) # {} THEN 1 ELSE 0), !.sus = @ \ gone,
                  !.st = [c \in Copies |-> IF c \in gone THEN "off" ELSE @[c]]]

WithJoined(p, r) ==
    LET ready == {c \in Copies : leg[p][c].join /\ r.st[c] = "sync" /\ c \in pri[p].lease}
    IN  [r EXCEPT !.epoch = @ + (IF ready # {} THEN 1 ELSE 0),
                  !.st = [c \in Copies |-> IF c \in ready THEN "in" ELSE @[c]]]

WithBegun(p, r) ==
    [r EXCEPT !.st = [c \in Copies |->
        IF leg[p][c].wants /\ @[c] = "off" THEN "sync" ELSE @[c]]]

AskHealing(p) ==
    LET r == IF pri[p].serving THEN WithBegun(p, WithJoined(p, Dropped(p, view[p])))
             ELSE Dropped(p, view[p])
    IN  /\ Free(p) /\ r # view[p]
        \* No copy goes while it may read by a lease that this primary knows of.
        /\ \A c \in InSync(view[p]) \ InSync(r) : p \notin disk[c].reads
        /\ Ask(p, r)
        /\ UNCHANGED <<rec, view, role, epoch, up, disk, pri, leg, hist, net>>

(* The policy (I6): below the least for longer than the grace, writing ends; it comes back when
   enough replicas are online and a consumer attaches anew. *)
AskReadOnly(p) ==
    /\ Free(p) /\ pri[p].serving /\ view[p].access = "rw" /\ Online(view[p]) < Least
    /\ Ask(p, [view[p] EXCEPT !.access = "ro"])
    /\ UNCHANGED <<rec, view, role, epoch, up, disk, pri, leg, hist, net>>

AskAttach(p) ==
    /\ Free(p) /\ pri[p].serving /\ view[p].gen < MaxSessions
    /\ Ask(p, [view[p] EXCEPT !.gen = @ + 1,
                              !.access = IF Online(view[p]) >= Least THEN "rw" ELSE @])
    /\ UNCHANGED <<rec, view, role, epoch, up, disk, pri, leg, hist, net>>

-----------------------------------------------------------------------------
(* Faults, and their ends *)

Fault(kind) == /\ kind \in Faults /\ net.faults < MaxFaults

(* Whatever a process knew is gone; what it wrote is in the page cache (R8). *)
Died(c, d) ==
    /\ role' = [role EXCEPT ![c] = "down"]
    /\ up' = [up EXCEPT ![c] = None]
    /\ want' = [want EXCEPT ![c] = None]
    /\ pri' = [pri EXCEPT ![c] = NotPrimary]
    /\ leg' = [p \in Copies |-> IF p = c THEN NoLegs ELSE [leg[p] EXCEPT ![c].same = FALSE]]
    /\ disk' = [disk EXCEPT ![c] =
         [d EXCEPT !.pin = d.pin \/ d.mark, !.win = FALSE, !.begun = FALSE, !.reads = {},
                   !.map = IF d.pin \/ d.mark THEN Dirtied(d) ELSE d.map]]
    /\ view' = [view EXCEPT ![c] = NoRecord]
    /\ net' = [net EXCEPT !.faults = @ + 1, !.word[c] = None,
                          !.late = @ \cup {w \in {want[c]} \ {None} :
                                             "late" \in Faults /\ w.st = "asked"}]
    /\ UNCHANGED <<rec, epoch, hist>>

Crash(c) == Fault("crash") /\ role[c] # "down" /\ Died(c, disk[c])

(* Power is lost: of what was not flushed, any part has reached the disk. *)
Between(a, b) == (IF a < b THEN a ELSE b)..Max(a, b)

Reboot(c) ==
    /\ Fault("reboot")
    /\ \E v \in Between(disk[c].data, disk[c].dur) :
         Died(c, [disk[c] EXCEPT !.data = v, !.dur = v, !.lost = TRUE])

(* A node comes back with an empty disk under its old name; another copy holds everything. *)
Wipe(c) ==
    /\ Fault("wipe") /\ \E x \in InSync(rec) \ {c} : Whole(x)
    /\ Died(c, [disk[c] EXCEPT !.data = 0, !.dur = 0, !.mark = FALSE, !.pin = FALSE, !.lost = FALSE,
                               !.other = TRUE, !.map = NoMaps])

Cut(a, b) ==
    /\ Fault("cut") /\ a # b /\ Connected(a, b)
    /\ net' = [net EXCEPT !.cut = @ \cup {{a, b}}, !.faults = @ + 1]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, leg, hist>>

Isolate(c) ==
    /\ Fault("isolate") /\ c \notin net.store
    /\ net' = [net EXCEPT !.cut = @ \cup {{c, x} : x \in Copies \ {c}}, !.store = @ \cup {c},
                          !.faults = @ + 1]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, leg, hist>>

StoreOut(c) ==
    /\ Fault("store") /\ StoreUp(c)
    /\ net' = [net EXCEPT !.store = @ \cup {c}, !.faults = @ + 1]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, leg, hist>>

AnswerLost(c) ==
    /\ Fault("answer") /\ want[c] # None /\ want[c].st # "asked"
    /\ want' = [want EXCEPT ![c].st = "asked"]
    /\ net' = [net EXCEPT !.faults = @ + 1]
    /\ UNCHANGED <<rec, view, role, epoch, up, disk, pri, leg, hist>>

(* R12: heartbeats live, acknowledgements stand still for too long. *)
Slow(p, c) ==
    /\ Fault("slow") /\ role[p] = "primary" /\ c \in Others(p) /\ ~leg[p][c].fault
    /\ leg' = [leg EXCEPT ![p][c] = [@ EXCEPT !.fault = TRUE, !.join = FALSE]]
    /\ net' = [net EXCEPT !.faults = @ + 1]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, hist>>

(* An operator, or a node that stops in order: everything is answered, then the record changes. *)
Handover(p, c) ==
    /\ Fault("handover") /\ Free(p) /\ pri[p].serving /\ pri[p].pend = <<>> /\ c \in Others(p)
    /\ \A x \in Others(p) : leg[p][x].eq /\ ~leg[p][x].fault /\ ~HasData(leg[p][x].q)
    /\ leg[p][c].ph = "stream"
    /\ pri' = [pri EXCEPT ![p].stopped = TRUE]
    /\ \E leave \in BOOLEAN :
         Ask(p, [view[p] EXCEPT !.epoch = @ + 1, !.primary = c,
                               !.st[p] = IF leave THEN "off" ELSE "in"])
    /\ net' = [net EXCEPT !.faults = @ + 1]
    /\ UNCHANGED <<rec, view, role, epoch, up, disk, leg, hist>>

(* R12 for the primary itself: its own disk answers nothing, so an in-sync copy is to be primary,
   and what is under way is left to the consumers, who ask again. *)
Relieve(p, c) ==
    /\ Fault("stall") /\ Free(p) /\ pri[p].serving /\ c \in Others(p)
    /\ leg[p][c].eq /\ ~leg[p][c].fault /\ leg[p][c].ph = "stream"
    /\ pri' = [pri EXCEPT ![p].stopped = TRUE]
    /\ Ask(p, [view[p] EXCEPT !.epoch = @ + 1, !.primary = c, !.st[p] = "off"])
    /\ net' = [net EXCEPT !.faults = @ + 1]
    /\ UNCHANGED <<rec, view, role, epoch, up, disk, leg, hist>>

(* What a process asked for before it died may still arrive at the store, or never. *)
LateApply ==
    /\ \E w \in net.late :
         /\ net' = [net EXCEPT !.late = @ \ {w}]
         /\ rec' = IF rec = w.exp THEN w.new ELSE rec
         /\ hist' = IF rec' = rec \/ rec'.primary \notin rec.sus THEN hist
                    ELSE [hist EXCEPT !.kept = hist.flushed, !.seen = hist.flushed]
    /\ UNCHANGED <<view, want, role, epoch, up, disk, pri, leg>>

LateLost ==
    /\ \E w \in net.late : net' = [net EXCEPT !.late = @ \ {w}]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, leg, hist>>

Restart(c) ==
    /\ role[c] = "down" /\ StoreUp(c)
    /\ role' = [role EXCEPT ![c] = "replica"]
    /\ view' = [view EXCEPT ![c] = rec]
    /\ UNCHANGED <<rec, want, epoch, up, disk, pri, leg, hist, net>>

Heal ==
    /\ \/ \E l \in net.cut : net' = [net EXCEPT !.cut = @ \ {l}]
       \/ \E c \in net.store : net' = [net EXCEPT !.store = @ \ {c}]
    /\ UNCHANGED <<rec, view, want, role, epoch, up, disk, pri, leg, hist>>

-----------------------------------------------------------------------------
Consumer == \E p \in Copies : Write(p) \/ Flush(p) \/ Answer(p) \/ Read(p) \/ ReadHere(p)

Faulty == \/ \E c \in Copies : Crash(c) \/ Reboot(c) \/ Wipe(c) \/ Isolate(c) \/ StoreOut(c) \/ AnswerLost(c)
          \/ \E a, b \in Copies : Cut(a, b) \/ Slow(a, b) \/ Handover(a, b) \/ Relieve(a, b)

Solo(c) == \/ Beat(c) \/ Lapse(c) \/ StoreApply(c) \/ Won(c) \/ Lost(c) \/ SeeRecord(c)
           \/ PublishSuspect(c) \/ Stand(c) \/ Promote(c)
           \/ Reconcile(c) \/ Serve(c) \/ Restart(c)
           \/ AskHealing(c) \/ AskReadOnly(c) \/ AskAttach(c) \/ ReadsOver(c)

Pair(p, c) == \/ Deliver(p, c) \/ RecvAck(p, c)
              \/ TakeOver(p, c) \/ Attach(p, c) \/ Hash(p, c) \/ Compare(p, c) \/ SendRun(p, c)
              \/ LegFault(p, c)

(* Apart from `Pair`, because nothing waits for it. *)
Reading == \E p, c \in Copies : LetRead(p, c)

Next == \/ Consumer \/ Reading \/ Faulty \/ Heal \/ LateApply \/ LateLost
        \/ \E c \in Copies : Solo(c)
        \/ \E p, c \in Copies : Pair(p, c)

Spec == Init /\ [][Next]_vars

Fairness ==
    /\ WF_vars(Heal) /\ WF_vars(LateLost)
    /\ \A p \in Copies : WF_vars(Answer(p)) /\ WF_vars(Solo(p))
    /\ \A p, c \in Copies : WF_vars(Pair(p, c))

(* Copies are alike, so it does not matter which of them begins as primary, nor which of the others
   the first fault befalls while nothing tells them apart; where symmetry must not be used, because
   liveness is checked, this saves most of what symmetry would. *)
First == CHOOSE c \in Copies : TRUE
Last == CHOOSE c \in Copies \ {First} : Cardinality(Copies) > 2 => c # (CHOOSE x \in Copies \ {First} : TRUE)
Alike == Away = 0 /\ MaxWrites = 0 /\ MaxSessions = 0 /\ ~Local /\ Cardinality(Copies) > 2
Spares(c) == /\ role'[c] = role[c] /\ c \notin net'.store /\ net'.cut # {{First, c}}
             /\ ~leg'[First][c].fault
             /\ IF want'[First] = None THEN TRUE ELSE want'[First].new.primary # c

(* A primary that has won a compare-and-set hears of it before a copy that has seen the record stands:
   that takes the copy longer than a lease.  Otherwise a copy that joins could be lost and join again
   for ever. *)
Prompt == \A c \in Copies : (role[c] = "replica" /\ role'[c] = "candidate") =>
             LET p == view[c].primary
             IN  ~(/\ role[p] = "primary" /\ Connected(p, c) /\ StoreUp(p)
                   /\ IF want[p] = None THEN FALSE ELSE want[p].st = "won")

FairNext == /\ Next /\ Prompt
            /\ (Alike /\ net.faults = 0 /\ net'.faults = 1) => Spares(Last)
FairSpec == Init /\ rec.primary = First /\ [][FairNext]_vars /\ Fairness

-----------------------------------------------------------------------------
(* What must hold *)

TypeOK ==
    /\ rec.epoch \in Nat /\ rec.primary \in InSync(rec)
    /\ \A c \in Copies : /\ rec.st[c] \in {"in", "sync", "off"}
                         /\ role[c] \in {"down", "replica", "candidate", "primary"}
                         /\ role[c] # "primary" => (pri[c] = NotPrimary /\ leg[c] = NoLegs)

(* Every in-sync copy holds every acknowledged write; and, because a write that was read is never
   unread, whatever was read. *)
I1 == \A c \in Copies : Whole(c) => disk[c].data >= hist.kept

(* Nobody answers beside another, nor below an epoch that any copy has fenced. *)
I2 == \A p \in Copies : MayAnswer(p) =>
         \A c \in Copies \ {p} : ~MayAnswer(c) /\ epoch[c] <= epoch[p]

(* Where in-sync copies differ, one of them knows that they may. *)
Knows(c) == Suspect(disk[c]) \/ (role[c] = "down" /\ disk[c].mark)
I3 == \A a, b \in Copies :
         (Whole(a) /\ Whole(b) /\ disk[a].data # disk[b].data) => \E c \in InSync(rec) : Knows(c)

(* What was flushed is on the stable storage of every in-sync copy. *)
I4 == \A c \in Copies : (rec.st[c] = "in" /\ ~disk[c].other) => disk[c].dur >= hist.flushed

(* A read that could be answered now is not older than what anybody was told before. *)
I5 == \A c \in Copies : (MayRead(c) \/ MayReadHere(c)) => disk[c].data >= hist.seen

(* Writing is withdrawn only below the least, and given back only by a new attachment. *)
I6 == [][/\ (rec.access = "rw" /\ rec'.access = "ro") => Online(rec) < Least
         /\ (rec.access = "ro" /\ rec'.access = "rw") =>
              (Online(rec') >= Least /\ rec'.gen > rec.gen)]_vars

(* Faults are bounded, so they stop; then redundancy comes back, with a primary that serves. *)
I7 == <>[](InSync(rec) = Copies /\ \E p \in Copies : MayAnswer(p))

Bounded == rec.epoch <= MaxEpoch
Symmetry == Permutations(Copies)
=============================================================================
