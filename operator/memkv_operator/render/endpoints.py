"""Where the parts of a pool find each other."""

from memkv_operator.api.names import metadata_name
from memkv_operator.api.pool import Pool


def metadata_endpoint(pool: Pool) -> str:
    """Return HOST:PORT of the metadata service as pods of the cluster resolve it."""
    host = f"{metadata_name(pool.meta.name)}.{pool.meta.namespace}.svc"
    return f"{host}:{pool.spec.ports.metadata}"
