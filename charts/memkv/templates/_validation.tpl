{{/*
What the schema of the values cannot say. `lookup` finds nothing in `helm template`: only what stands
in the cluster already is sought by it, in _scope.tpl.
*/}}
{{- define "memkv.validate" -}}
{{- if include "memkv.isStatic" . -}}
{{- include "memkv.validateStatic" . -}}
{{- else -}}
{{- include "memkv.validateOperator" . -}}
{{- include "memkv.validateScope" . -}}
{{- end -}}
{{- include "memkv.validateApis" . -}}
{{- /* A parent chart's global values are for all of its charts; alone, nobody else reads them. */ -}}
{{- if .Chart.IsRoot -}}
  {{- range $key := keys .Values.global | sortAlpha -}}
    {{- if not (has $key (list "imageRegistry" "imagePullSecrets")) -}}
      {{- fail (printf "global.%s is read by nothing: this chart knows global.imageRegistry and global.imagePullSecrets" $key) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Values of the mode Operator. */}}
{{- define "memkv.validateOperator" -}}
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
{{- $budget := .Values.podDisruptionBudget -}}
{{- if and $budget.enabled (gt (int .Values.replicaCount) 1) (ge (int $budget.minAvailable) (int .Values.replicaCount)) -}}
  {{- fail (printf "podDisruptionBudget.minAvailable=%d of replicaCount=%d lets no operator pod go, so nodes could never be drained: raise replicaCount or lower minAvailable" (int $budget.minAvailable) (int .Values.replicaCount)) -}}
{{- end -}}
{{- if and .Values.crds.install (not .Values.crds.keep) (or .Values.uninstall.force (not .Values.uninstall.check)) -}}
  {{- fail "crds.keep=false takes the CRDs, and so every pool, away with the release, but with uninstall.force=true or uninstall.check=false the operator goes first: pools would hang in deletion for ever. Leave crds.keep=true, or uninstall with the check and without force" -}}
{{- end -}}
{{- include "memkv.refuseRepeated" (dict "where" "podLabels" "names" (keys .Values.podLabels) "taken" (include "memkv.ownLabels" .)) -}}
{{- include "memkv.refuseRepeated" (dict "where" "podAnnotations" "names" (keys .Values.podAnnotations) "taken" "kubectl.kubernetes.io/default-container") -}}
{{- include "memkv.refuseRepeated" (dict "where" "extraEnv" "names" (include "memkv.namesOf" .Values.extraEnv | splitList " ") "taken" "POD_NAME POD_NAMESPACE MEMKV_IMAGE MEMKV_METADATA_BINDING") -}}
{{- $flags := list "--http-port" "--namespace" "--annotate-nodes" "--image" "--metadata-binding" "--lease-name" "--lease-namespace" -}}
{{- range $argument := .Values.extraArgs -}}
  {{- $flag := tpl $argument $ | splitList "=" | first | trim -}}
  {{- if has $flag $flags -}}
    {{- fail (printf "extraArgs repeats %s, which the chart or the operator's rights settle: use metrics.port, watchNamespaces, annotateNodes or image" $flag) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Values of the mode Static. */}}
{{- define "memkv.validateStatic" -}}
{{- $static := .Values.dataPlane.static -}}
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
{{- if gt (int $end) 65536 -}}
  {{- fail (printf "dataPlane.static.ports.data=%d leaves no port for each of %d workers, which listen on it and the ports after it, up to 65535: lower it" (int $static.ports.data) (int $static.workers)) -}}
{{- end -}}
{{- range $name := list "admin" "metrics" -}}
  {{- $port := int (get $static.ports $name) -}}
  {{- if and (ge $port (int $static.ports.data)) (lt $port (int $end)) -}}
    {{- fail (printf "dataPlane.static.ports.%s=%d is the data port of a worker: workers listen on ports.data and the ports after it" $name $port) -}}
  {{- end -}}
{{- end -}}
{{- range $name := list "admin" "metadata" -}}
  {{- if eq (int (get $static.ports $name)) (int $static.ports.metrics) -}}
    {{- fail (printf "dataPlane.static.ports.%s and dataPlane.static.ports.metrics are the same port of one pod: change one of them" $name) -}}
  {{- end -}}
{{- end -}}
{{- $service := $static.metadata.service -}}
{{- if and $service.nodePort (eq $service.type "ClusterIP") -}}
  {{- fail "dataPlane.static.metadata.service.nodePort needs service.type=NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $static.tls.saltKey $static.insecure -}}
  {{- fail "dataPlane.static.tls.saltKey needs TLS: with dataPlane.static.insecure=true anybody gets the salts" -}}
{{- end -}}
{{- $own := printf "%s memkv.io/pool" (include "memkv.ownLabels" .) -}}
{{- include "memkv.refuseRepeated" (dict "where" "serviceDaemonSet.labels" "names" (keys .Values.serviceDaemonSet.labels) "taken" $own) -}}
{{- include "memkv.refuseRepeated" (dict "where" "dataPlane.static.extraEnv" "names" (include "memkv.namesOf" $static.extraEnv | splitList " ") "taken" "NODE_NAME POD_IP") -}}
{{- $update := .Values.serviceDaemonSet.updateStrategy -}}
{{- if and (eq $update.type "OnDelete") $update.rollingUpdate -}}
  {{- fail "serviceDaemonSet.updateStrategy.rollingUpdate needs type=RollingUpdate: with OnDelete a pod is replaced when you delete it" -}}
{{- end -}}
{{- end -}}

{{/* APIs of others that values ask for. */}}
{{- define "memkv.validateApis" -}}
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

{{/* Keys of the labels that the chart gives every pod. */}}
{{- define "memkv.ownLabels" -}}
{{- include "memkv.labels" (dict "root" . "component" "operator") | fromYaml | keys | sortAlpha | join " " -}}
{{- end -}}

{{/* Names of a list of environment variables, separated by blanks. */}}
{{- define "memkv.namesOf" -}}
{{- $names := list -}}
{{- range . -}}{{- $names = append $names .name -}}{{- end -}}
{{- join " " $names -}}
{{- end -}}

{{/* Fails for a name that the chart says itself ("taken", separated by blanks) or that is there twice. */}}
{{- define "memkv.refuseRepeated" -}}
{{- $seen := splitList " " .taken -}}
{{- $where := .where -}}
{{- range $name := sortAlpha .names -}}
  {{- if and $name (has $name $seen) -}}
    {{- fail (printf "%s says %s, which the chart sets itself or which is there twice: take it out, or another name" $where $name) -}}
  {{- end -}}
  {{- $seen = append $seen $name -}}
{{- end -}}
{{- end -}}
