from __future__ import annotations


def test_imports() -> None:
    import holdfast_transport_nvmeof  # noqa: F401
