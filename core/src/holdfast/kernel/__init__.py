"""Finding drivers, telling observers, reading configuration.

The kernel knows names, entry points and option classes; it refuses to know what a volume is.
Nothing here is on the path of a request.
"""
