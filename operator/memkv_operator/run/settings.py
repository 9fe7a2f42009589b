"""What one operator process is told."""

from dataclasses import dataclass
from datetime import timedelta

from memkv_operator.identity.ticket_keys import OVERLAP
from memkv_operator.identity.trust import GRACE
from memkv_operator.kube.lease import LeaseConfig

RESYNC_S = 60.0  # every pool is looked at so often, whatever was heard
UNDER_WAY_S = 5.0  # and so often while something of it waits for time to pass
LIST_AGAIN_S = 300.0  # a watch may lose a deletion; this finds it
AGENT_INTERVAL_S = 1.0  # between questions to an agent: disks come and go by hand
STEP_S = 0.25  # between looks at whether a pool's map should change


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one process."""

    lease: LeaseConfig
    own_image: str
    namespaces: tuple[str, ...] = ()
    """Empty: all."""
    http_host: str = "0.0.0.0"
    http_port: int = 9471
    metadata_binding: str = ""
    """ClusterRoleBinding that lets metadata pods check tokens; empty: not the operator's task."""
    annotates_nodes: bool = False
    """Whether Nodes that are being emptied are annotated once they may be rebooted."""
    resync_s: float = RESYNC_S
    under_way_s: float = UNDER_WAY_S
    list_again_s: float = LIST_AGAIN_S
    step_s: float = STEP_S
    authority_grace: timedelta = GRACE
    """Between the phases of a change of a pool's authority, or of the key of its tickets: kubelet
    renews files meanwhile."""
    ticket_overlap: timedelta = OVERLAP
    """For how long tickets of a key are taken that signs no more."""
    agent_interval_s: float = AGENT_INTERVAL_S
