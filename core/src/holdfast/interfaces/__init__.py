"""What a driver implements: Protocols with their errors, units and ordering, and no logic.

`API_VERSION` is the major version of all of them together; the registry refuses a driver that says
it was built for another.
"""

API_VERSION = 1
