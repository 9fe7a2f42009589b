"""Children that the API server refuses, in its own words."""

from collections.abc import Mapping

from memkv_operator.plan.preflight import Finding


def refusal_findings(refused: Mapping[str, str]) -> list[Finding]:
    """Return what is said of refused children: "Kind name" -> why. What was applied before stays,
    and so does everything else of the pool."""
    return [
        Finding(
            "ApplyFailed",
            f"the API server refuses {child}: {why}; correct the part of the spec that it comes "
            "from (podTemplate, resources, tolerations), or what refuses it",
            False,
        )
        for child, why in sorted(refused.items())
    ]
