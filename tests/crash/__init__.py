"""What a power loss may leave of a copy, tried out: the store on a disk that forgets what was not synced.

    python -m tests.crash --seeds 200           many recorded lives, thoroughly
    python -m tests.crash --seed 7 --state 123  one state again, as a failure names it
    python -m tests.crash --mistakes            whether every planted mistake is found

The store runs over `disk.RecordingPort`, which carries out every call and keeps, for each 512-byte
sector, each file's length and each name in a directory, everything that it has been since it was last
synced. After every call the disk may be any mixture of these (`disk.Disk.choices`): nothing lost,
everything lost, one thing lost or kept, pages or sectors at random. Each mixture is written out,
opened by the store, and held to what the store had promised by then (`promises`). `lives` makes up
what the owner of a copy does: writes, flushes, marks, hashes, kills and restarts, power losses.

Weaker than any real file system on purpose: what holds here does not lean on the order in which
ext4 or xfs happen to write.
"""
