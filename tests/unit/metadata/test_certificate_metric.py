"""The metric that tells when certificates end follows the files."""

from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry

from memkv.metadata.certificate_metric import NAME, CertificateCollector
from memkv.testing.certificates import Authority, write_pair

SOON = datetime(2030, 1, 1, tzinfo=UTC)
LATER = datetime(2031, 1, 1, tzinfo=UTC)
CENTURY = datetime(2120, 1, 1, tzinfo=UTC)


def test_the_end_of_each_certificate_is_shown_as_the_files_are_now(tmp_path: Path) -> None:
    authority = Authority()
    files = authority.files(tmp_path, "node", "n")
    registry = CollectorRegistry()
    registry.register(CertificateCollector(files, "node"))

    def shown(certificate: str) -> float | None:
        return registry.get_sample_value(NAME, {"certificate": certificate})

    for until in (SOON, LATER):
        write_pair(files, authority.issue("n", until=until))
        assert shown("node") == until.timestamp()
    # What follows the certificate in its file is not the process's own.
    with files.certificate.open("ab") as file:
        file.write(authority.issue("n", until=SOON).certificate)
    assert shown("node") == LATER.timestamp()
    assert shown("authority") == CENTURY.timestamp()
    # Of several authorities, the first that ends.
    with files.authority.open("ab") as file:
        file.write(authority.issue("ca", until=SOON).certificate)
    assert shown("authority") == SOON.timestamp()
    files.certificate.write_bytes(b"being replaced")
    assert shown("node") is None
    assert shown("authority") == SOON.timestamp()
