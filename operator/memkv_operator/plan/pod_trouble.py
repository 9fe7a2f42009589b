"""Why a pod does not run, in one word and in a sentence with the likely cause and the fix."""

from dataclasses import dataclass

from memkv_operator.api.cluster import AgentPod, Pod

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"})
_CREATE = frozenset(
    {"CreateContainerError", "CreateContainerConfigError", "RunContainerError"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Knobs:
    """Where people set what a pod is made from."""

    image: str
    room: str
    """How to get along with less room on the node."""


OF_GROUP = Knobs("spec.image and imagePullSecrets", "lower what the group asks for")
OF_METADATA = Knobs("spec.image and imagePullSecrets", "add a node without taints")
OF_AGENT = Knobs("image and imagePullSecrets of the chart", "lower its agent.resources")


def explained(pod: Pod | AgentPod, knobs: Knobs = OF_GROUP) -> tuple[str, str]:
    """Return (reason, message) of a pod that has trouble."""
    trouble, where = pod.trouble, f"-n {pod.namespace} {pod.name}"
    cause = trouble.partition(":")[0]
    if cause in _IMAGE:
        return "ImagePullFailed", (f"{trouble}; check {knobs.image}: kubectl describe pod {where}")
    if cause == "Unschedulable":
        reason = "InsufficientHugepages" if "hugepages-" in trouble else "Unschedulable"
        return reason, (
            f"{trouble}; free what is lacking there or {knobs.room}: kubectl describe pod {where}"
        )
    if cause == "CrashLoopBackOff":
        return "CrashLoop", f"{trouble}; kubectl logs --previous {where}"
    if cause in _CREATE:
        hint = "kubectl describe pod"
        if "seccomp" in trouble:
            hint = (
                "the node lacks the profile memkv/data-plane.json: run the agent there "
                "(agent.enabled), or leave the group's seccompProfile out; kubectl describe pod"
            )
        return "CreateContainerError", f"{trouble}; {hint} {where}"
    return "PodFailing", f"{trouble}; kubectl describe pod {where}"
