{{/* The name of the chart, for labels. */}}
{{- define "kube-tls-proxy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of the objects: the release's name, and the chart's name unless the release's name contains it. Short enough to append `-metrics`. */}}
{{- define "kube-tls-proxy.fullname" -}}
{{- $name := include "kube-tls-proxy.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 55 | trimSuffix "-" -}}
{{- end -}}

{{/* The labels that select a pod of this release. They must never change, because the selector of a Deployment cannot change. */}}
{{- define "kube-tls-proxy.selector" -}}
app.kubernetes.io/name: {{ include "kube-tls-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kube-tls-proxy.labels" -}}
{{ include "kube-tls-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kube-tls-proxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "kube-tls-proxy.secret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "kube-tls-proxy.fullname" .)) -}}
{{- end -}}

{{/* Empty: the pods use the service account `default` of the namespace. */}}
{{- define "kube-tls-proxy.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "kube-tls-proxy.fullname" .) "" .Values.serviceAccount.create) -}}
{{- end -}}
