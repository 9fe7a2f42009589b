{{/*
What the operator does in the namespaces of pools. Sorted by group and resource, verbs by alphabet,
so that nothing is said twice or missed. It makes Roles for metadata pods (get, list and watch on
pools and shard maps), which the API server allows because it holds those rights itself.
*/}}
{{- define "memkv.poolRules" -}}
- apiGroups: [""]
  resources: [configmaps, serviceaccounts, services]
  verbs: [create, delete, get, list, patch, watch]
# Pod Security of a pool's namespace; in a Role, of its own alone.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [""]
  resources: [pods]
  verbs: [delete, list, watch]
# Certificates and keys of pools. Never list or watch: then all Secrets could be read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, get, patch]
- apiGroups: [apps]
  resources: [daemonsets, deployments]
  verbs: [create, delete, get, list, patch, watch]
{{- if .Values.certManager.enabled }}
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [create, delete, get, patch]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  # List: why a DaemonSet's pods are refused stands nowhere else.
  verbs: [create, list]
- apiGroups: [memkv.io]
  resources: [memkvnodes]
  verbs: [create, delete, list, patch, watch]
- apiGroups: [memkv.io]
  resources: [memkvnodes/status, memkvpools/status]
  verbs: [patch]
- apiGroups: [memkv.io]
  resources: [memkvpools]
  verbs: [get, list, patch, watch]
# Children block the deletion of their pool: OwnerReferencesPermissionEnforcement asks for this.
- apiGroups: [memkv.io]
  resources: [memkvpools/finalizers]
  verbs: [update]
# List and watch: only who has them can give them to metadata pods.
- apiGroups: [memkv.io]
  resources: [memkvshardmaps]
  verbs: [create, delete, get, list, update, watch]
{{- if .Values.metrics.poolPodMonitors.enabled }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [create, delete, get, patch]
{{- end }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings, roles]
  verbs: [create, delete, get, list, patch, watch]
{{- end -}}
