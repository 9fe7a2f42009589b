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
  verbs: [delete, get, list, watch]
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
  verbs: [create, list, patch]
- apiGroups: [memkv.io]
  resources: [memkvnodes, memkvshardmaps]
  verbs: [create, delete, get, list, patch, update, watch]
- apiGroups: [memkv.io]
  resources: [memkvnodes/finalizers, memkvpools/finalizers]
  verbs: [patch, update]
- apiGroups: [memkv.io]
  resources: [memkvnodes/status, memkvpools/status]
  verbs: [get, patch, update]
- apiGroups: [memkv.io]
  resources: [memkvpools]
  verbs: [get, list, patch, update, watch]
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
