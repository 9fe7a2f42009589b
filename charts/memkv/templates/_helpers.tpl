{{/* Names, labels and the image; everything that more than one template says. */}}

{{- define "memkv.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters leave room for what is appended. */}}
{{- define "memkv.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "memkv.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "memkv.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "memkv.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{/* Cluster-scoped names carry the namespace, so that two releases do not meet. */}}
{{- define "memkv.clusterName" -}}
{{- if eq (include "memkv.namespace" .) (include "memkv.fullname" .) -}}
{{- include "memkv.fullname" . -}}
{{- else -}}
{{- printf "%s-%s" (include "memkv.namespace" .) (include "memkv.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- define "memkv.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (printf "%s-operator" (include "memkv.fullname" .)) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Immutable: part of selectors. Call with (dict "root" $ "component" "operator"). */}}
{{- define "memkv.selectorLabels" -}}
app.kubernetes.io/name: {{ include "memkv.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "memkv.labels" -}}
{{ include "memkv.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: memkv
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "memkv.image" -}}
{{- $registry := default .Values.image.registry .Values.global.imageRegistry -}}
{{- $name := ternary .Values.image.repository (printf "%s/%s" $registry .Values.image.repository) (empty $registry) -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Empty without secrets. */}}
{{- define "memkv.imagePullSecrets" -}}
{{- with .Values.global.imagePullSecrets -}}
imagePullSecrets:
{{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "memkv.isStatic" -}}
{{- if eq .Values.dataPlane.mode "Static" }}true{{ end -}}
{{- end -}}

{{/* "namespace/name" of the pool of the mode Static. */}}
{{- define "memkv.staticPool" -}}
{{- printf "%s/%s" (include "memkv.namespace" .) (include "memkv.fullname" .) -}}
{{- end -}}

{{- define "memkv.metadataEndpoint" -}}
{{- printf "%s-metadata.%s.svc:%d" (include "memkv.fullname" .) (include "memkv.namespace" .) (int .Values.dataPlane.static.ports.metadata) -}}
{{- end -}}

{{/* What clients of the mode Static find in connection.json. Under TLS they mount a certificate of their own. */}}
{{- define "memkv.staticConnection" -}}
{{- $endpoint := default (include "memkv.metadataEndpoint" .) .Values.dataPlane.static.metadata.externalEndpoint -}}
{{- $connection := dict "endpoint" $endpoint "pool" (include "memkv.staticPool" .) -}}
{{- if not .Values.dataPlane.static.insecure -}}
{{- range $name, $file := dict "ca" "ca.crt" "tls_cert" "tls.crt" "tls_key" "tls.key" -}}
{{- $_ := set $connection $name (printf "/etc/memkv-tls/%s" $file) -}}
{{- end -}}
{{- end -}}
{{- $connection | toJson -}}
{{- end -}}
