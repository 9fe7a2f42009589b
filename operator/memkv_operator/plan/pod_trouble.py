"""Why a pod does not run, in one word and in a sentence with the likely cause and the fix."""

from memkv_operator.api.cluster import Pod

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"})
_CREATE = frozenset(
    {"CreateContainerError", "CreateContainerConfigError", "RunContainerError"}
)  # fmt: skip


def explained(pod: Pod) -> tuple[str, str]:
    """Return (reason, message) of a pod that has trouble."""
    trouble, where = pod.trouble, f"-n {pod.namespace} {pod.name}"
    cause = trouble.partition(":")[0]
    if cause in _IMAGE:
        return "ImagePullFailed", (
            f"{trouble}; check spec.image and imagePullSecrets: kubectl describe pod {where}"
        )
    if cause == "Unschedulable":
        reason = "InsufficientHugepages" if "hugepages-" in trouble else "Unschedulable"
        return reason, (
            f"{trouble}; free what is lacking there or lower what the group asks for: "
            f"kubectl describe pod {where}"
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
