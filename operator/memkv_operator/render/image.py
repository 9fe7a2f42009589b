"""Which image a pool's pods run."""

from memkv_operator.api.pool import Image


def image_reference(image: Image, own: str) -> str:
    """Return the image; what the pool leaves out is taken from the operator's `own`."""
    name, own_suffix = _split_suffix(own)
    own_registry, own_repository = _split_registry(name)
    registry = image.registry or own_registry
    repository = image.repository or own_repository
    suffix = own_suffix
    if image.digest:
        suffix = f"@{image.digest}"
    elif image.tag:
        suffix = f":{image.tag}"
    return f"{registry}/{repository}{suffix}" if registry else f"{repository}{suffix}"


def _split_suffix(reference: str) -> tuple[str, str]:
    name, at, digest = reference.partition("@")
    if at:
        return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name, f"@{digest}"
    head, colon, tag = reference.rpartition(":")
    if colon and "/" not in tag:
        return head, f":{tag}"
    return reference, ""


def _split_registry(name: str) -> tuple[str, str]:
    """The first part is a registry when it looks like a host, as container runtimes decide it."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return "", name
