"""What a pod's status says of why it does not run."""

from memkv.metadata.kubernetes.json_values import Reader

MESSAGE_MAX = 400  # of a container's last words: the end of its log, where the error stands


def pod_trouble(status: Reader) -> str:
    """Return "Reason: message" of the first container, or of the scheduler; "" for none."""
    for container in (
        *status.objects("initContainerStatuses"),
        *status.objects("containerStatuses"),
    ):
        state = container.object("state")
        waiting = state.object("waiting")
        if waiting.text("reason") == "CrashLoopBackOff":
            words = _last_words(container.object("lastState").object("terminated"))
            return _said("CrashLoopBackOff", words or waiting.text("message"))
        if waiting.text("reason") not in ("", "ContainerCreating", "PodInitializing"):
            return _said(waiting.text("reason"), waiting.text("message"))
        ended = state.object("terminated")
        if ended.text("reason") not in ("", "Completed"):
            return _said("CrashLoopBackOff", _last_words(ended))
    for condition in status.objects("conditions"):
        if condition.text("type") == "PodScheduled" and condition.text("status") == "False":
            return _said(condition.text("reason"), condition.text("message"))
    return ""


def target_node(pod_spec: Reader) -> str:
    """Return the node that a pod is on, or that it waits for: a DaemonSet's pod is made for one."""
    if name := pod_spec.text("nodeName"):
        return name
    required = (
        pod_spec.object("affinity")
        .object("nodeAffinity")
        .object("requiredDuringSchedulingIgnoredDuringExecution")
    )
    for term in required.objects("nodeSelectorTerms"):
        for field in term.objects("matchFields"):
            values = field.texts("values")
            if field.text("key") == "metadata.name" and len(values) == 1:
                return values[0]
    return ""


def _last_words(terminated: Reader) -> str:
    if not terminated.value:
        return ""
    message = " ".join(terminated.text("message").split())
    if len(message) > MESSAGE_MAX:
        message = f"...{message[-MESSAGE_MAX:]}"
    ended = f"{terminated.text('reason')}, exit {terminated.integer('exitCode')}"
    return f"{ended}: {message}" if message else ended


def _said(reason: str, message: str) -> str:
    return f"{reason}: {message}".rstrip(": ")
