{{/*
Two operators that look after one namespace would fight for its pools, and two in one namespace would
share a Lease and the agents' Secret. The ClusterRole of each release says in an annotation where its
operator looks; `lookup` finds those of other releases, and nothing in `helm template`.
*/}}

{{- define "memkv.watched" -}}
{{- join "," .Values.watchNamespaces -}}
{{- end -}}

{{- define "memkv.validateScope" -}}
{{- if .Values.rbac.create -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items -}}
  {{- $annotations := .metadata.annotations | default dict -}}
  {{- $home := get $annotations "memkv.io/operator-namespace" -}}
  {{- /* An upgrade may change every name, but not the release and its namespace. */ -}}
  {{- $release := list (index (.metadata.labels | default dict) "app.kubernetes.io/instance") (get $annotations "meta.helm.sh/release-namespace" | default $home) -}}
  {{- $same := eq (join "/" $release) (printf "%s/%s" $.Release.Name $.Release.Namespace) -}}
  {{- if and (hasKey $annotations "memkv.io/watched-namespaces") (not $same) -}}
    {{- $theirs := get $annotations "memkv.io/watched-namespaces" | splitList "," | compact -}}
    {{- if eq $home (include "memkv.namespace" $) -}}
      {{- fail (printf "the namespace %s has an operator already (ClusterRole %s): two would share one Lease and one of them would never work. Upgrade that release, or use another namespace" $home .metadata.name) -}}
    {{- end -}}
    {{- if or (not $theirs) (not $.Values.watchNamespaces) -}}
      {{- fail (printf "the operator in the namespace %s (ClusterRole %s) looks after %s: a second one would fight with it for pools. Give each release namespaces of its own by watchNamespaces, or uninstall that one" $home .metadata.name (default "all namespaces" (join ", " $theirs))) -}}
    {{- end -}}
    {{- range $namespace := $.Values.watchNamespaces -}}
      {{- if has $namespace $theirs -}}
        {{- fail (printf "watchNamespaces names %s, which the operator in the namespace %s looks after: a second one would fight with it for pools" $namespace $home) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
