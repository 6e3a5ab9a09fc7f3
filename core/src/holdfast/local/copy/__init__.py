"""The store of one copy over a directory, in parts; `holdfast.local.copy_store` is its face."""
