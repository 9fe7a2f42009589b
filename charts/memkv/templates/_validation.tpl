{{/* What the schema of the values cannot say. `lookup` finds nothing in `helm template`: nothing here needs it. */}}
{{- define "memkv.validate" -}}
{{- $static := .Values.dataPlane.static -}}
{{- if include "memkv.isStatic" . -}}
  {{- $secrets := list $static.tls.metadataSecret $static.tls.nodeSecret $static.tls.ticketSecret | compact -}}
  {{- if and (not $static.insecure) (ne (len $secrets) 3) -}}
    {{- fail "dataPlane.mode=Static needs the three Secrets of dataPlane.static.tls; or, on a network of your own, dataPlane.static.insecure=true" -}}
  {{- end -}}
  {{- if and $static.insecure $secrets -}}
    {{- fail "dataPlane.static.insecure=true takes no Secrets in dataPlane.static.tls: with them it is not insecure" -}}
  {{- end -}}
  {{- if not $static.nodes -}}
    {{- fail "dataPlane.mode=Static needs dataPlane.static.nodes, the admin addresses of all storage nodes, e.g. {10.0.0.7:9470,10.0.0.8:9470}" -}}
  {{- end -}}
  {{- if not .Values.serviceDaemonSet.nodeSelector -}}
    {{- fail "dataPlane.mode=Static needs serviceDaemonSet.nodeSelector: without it every node of the cluster would store blocks" -}}
  {{- end -}}
  {{- if .Values.agent.enabled -}}
    {{- fail "agent.enabled=true needs dataPlane.mode=Operator: nobody commands an agent in the mode Static" -}}
  {{- end -}}
  {{- $end := add (int $static.ports.data) (int $static.workers) -}}
  {{- range $name := list "admin" "metrics" -}}
    {{- $port := int (get $static.ports $name) -}}
    {{- if and (ge $port (int $static.ports.data)) (lt $port (int $end)) -}}
      {{- fail (printf "dataPlane.static.ports.%s=%d is the data port of a worker: workers listen on ports.data and the ports after it" $name $port) -}}
    {{- end -}}
  {{- end -}}
{{- else -}}
  {{- if and .Values.agent.enabled (eq (int .Values.agent.ports.admin) (int .Values.agent.ports.metrics)) -}}
    {{- fail "agent.ports.admin and agent.ports.metrics are the same port" -}}
  {{- end -}}
  {{- if and .Values.agent.enabled (not .Values.agent.nodeSelector) -}}
    {{- fail "agent.enabled=true needs agent.nodeSelector: without it a privileged pod would run on every node" -}}
  {{- end -}}
  {{- if and .Values.watchNamespaces (has "" .Values.watchNamespaces) -}}
    {{- fail "watchNamespaces has an empty name; leave the list empty to watch all namespaces" -}}
  {{- end -}}
  {{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) .Values.rbac.create -}}
    {{- fail "serviceAccount.create=false needs serviceAccount.name: the operator's rights are not given to the account `default`" -}}
  {{- end -}}
{{- end -}}
{{- range $kind := list "serviceMonitor" "podMonitor" -}}
  {{- if and (get $.Values.metrics $kind).enabled (not ($.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
    {{- fail (printf "metrics.%s.enabled=true needs the Prometheus operator, whose API monitoring.coreos.com/v1 this cluster lacks (for `helm template`: --api-versions monitoring.coreos.com/v1)" $kind) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.metrics.prometheusRule.enabled (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
  {{- fail "metrics.prometheusRule.enabled=true needs the Prometheus operator, whose API monitoring.coreos.com/v1 this cluster lacks (for `helm template`: --api-versions monitoring.coreos.com/v1)" -}}
{{- end -}}
{{- if and .Values.nodeFeatureRule.enabled (not (.Capabilities.APIVersions.Has "nfd.k8s-sigs.io/v1alpha1")) -}}
  {{- fail "nodeFeatureRule.enabled=true needs Node Feature Discovery, whose API nfd.k8s-sigs.io/v1alpha1 this cluster lacks (for `helm template`: --api-versions nfd.k8s-sigs.io/v1alpha1)" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) -}}
  {{- fail "metrics.serviceMonitor.enabled=true needs metrics.service.enabled=true" -}}
{{- end -}}
{{- end -}}
