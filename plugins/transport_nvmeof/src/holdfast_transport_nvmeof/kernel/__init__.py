"""The kernel's own NVMe-oF: block devices exported by nvmet and imported by nvme-fabrics.

Planning and doing are apart. `target` and `fabrics` compare what is wanted with what was found and
return steps; they touch nothing, so they are tested without root. `steps` carries steps out and
prints them as shell commands for `--dry-run`. What is not named as ours is never changed.
"""
