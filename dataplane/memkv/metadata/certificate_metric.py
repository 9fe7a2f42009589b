"""When the certificates of a process end, read from its files when Prometheus asks."""

from collections.abc import Iterator

from cryptography.x509 import load_pem_x509_certificates
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memkv.errors import ConfigError
from memkv.metadata.certificates import TlsFiles, read_pem

NAME = "memkv_tls_cert_expiry_timestamp_seconds"


class CertificateCollector(Collector):
    """Shows the end of a process's own certificate, and of the first authority it believes that
    ends. A file that cannot be read has no sample: the process goes on with what it read before."""

    def __init__(self, files: TlsFiles, own: str) -> None:
        """`own`: what the process is, for the label `certificate`."""
        self._paths = {own: files.certificate, "authority": files.authority}
        self._own = own

    def collect(self) -> Iterator[Metric]:
        """Yield the one family."""
        family = GaugeMetricFamily(NAME, "When a certificate ends", labels=["certificate"])
        for name, path in self._paths.items():
            try:
                found = load_pem_x509_certificates(read_pem(path))
            except (ConfigError, ValueError):
                continue
            # What follows a certificate of one's own leads to the authority, and is not one's own.
            ends = [one.not_valid_after_utc.timestamp() for one in found]
            family.add_metric([name], ends[0] if name == self._own else min(ends))
        yield family
