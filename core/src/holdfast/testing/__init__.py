"""The public kit for driver authors: conformance checks, fakes that pass them, simulation."""
