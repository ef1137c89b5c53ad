"""The archives and certificates of the tests."""

from tests.pacs.orthanc import archive, certificates, filled, guarded, no_secrets, relay, study

__all__ = ["archive", "certificates", "filled", "guarded", "no_secrets", "relay", "study"]
