{{/* The configuration file: `config`, with what other values add to it. Empty if there is nothing to write. */}}
{{- define "kube-tls-proxy.config" -}}
{{- $file := deepCopy (.Values.config | default dict) -}}
{{- $lists := dict -}}
{{- with .Values.listen.allow -}}{{- $_ := set $lists "allow" . -}}{{- end -}}
{{- with .Values.listen.deny -}}{{- $_ := set $lists "deny" . -}}{{- end -}}
{{- if $lists -}}
  {{- $address := ternary "[::]:8443" "0.0.0.0:8443" .Values.ipv6 -}}
  {{- $_ := set $file "listen" (list (set $lists "address" $address)) -}}
{{- end -}}
{{- if .Values.discovery.enabled -}}
  {{- if not $file.clusters -}}{{- $_ := set $file "clusters" (list (dict "name" "in-cluster" "inCluster" true)) -}}{{- end -}}
  {{- range $file.clusters -}}
    {{- if .inCluster -}}{{- $_ := set . "inCluster" (dict "discover" "endpoints") -}}{{- end -}}
  {{- end -}}
{{- end -}}
{{- with .Values.clientCertificates -}}
{{- if or .frontProxy.secret .impersonate.enabled -}}
  {{- $folder := "/etc/kube-tls-proxy/client-certificates" -}}
  {{- $section := dict "ca" (printf "%s/ca/%s" $folder .ca.key) -}}
  {{- if .impersonate.enabled -}}{{- $_ := set $section "impersonate" (dict "tokenFile" "/var/run/secrets/impersonation/token") -}}
  {{- else -}}{{- $_ := set $section "frontProxy" (dict "certificate" (printf "%s/front-proxy/tls.crt" $folder) "key" (printf "%s/front-proxy/tls.key" $folder)) -}}{{- end -}}
  {{- if or .crl.configMap .crl.secret -}}{{- $_ := set $section "crl" (printf "%s/crl/%s" $folder .crl.key) -}}{{- end -}}
  {{- if .allowSystem -}}{{- $_ := set $section "allowSystem" true -}}{{- end -}}
  {{- if not $file.clusters -}}{{- $_ := set $file "clusters" (list (dict "name" "in-cluster" "inCluster" true)) -}}{{- end -}}
  {{- range $file.clusters -}}
    {{- if and .inCluster (not .passthrough) -}}{{- $_ := set . "clientCertificates" $section -}}{{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}
{{- with $file -}}{{- toYaml . -}}{{- end -}}
{{- end -}}

{{/* The mounts of the files of clientCertificates. */}}
{{- define "kube-tls-proxy.mounts" -}}
{{- with .Values.clientCertificates }}
{{- range $name, $source := dict "ca" .ca "crl" .crl "front-proxy" .frontProxy }}
{{- if or $source.configMap $source.secret }}
- {name: client-certificates-{{ $name }}, mountPath: /etc/kube-tls-proxy/client-certificates/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}
{{- if .impersonate.enabled }}
- {name: impersonation, mountPath: /var/run/secrets/impersonation, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* Their volumes. Of a CA only the named key is mounted, because its Secret may have the private key too. */}}
{{- define "kube-tls-proxy.volumes" -}}
{{- with .Values.clientCertificates }}
{{- range $name, $source := dict "ca" .ca "crl" .crl "front-proxy" .frontProxy }}
{{- $items := "" }}
{{- with $source.key }}{{ $items = printf ", items: [{key: %q, path: %q}]" . . }}{{ end }}
{{- if $source.configMap }}
- name: client-certificates-{{ $name }}
  configMap: {name: {{ $source.configMap | quote }}{{ $items }}}
{{- else if $source.secret }}
- name: client-certificates-{{ $name }}
  secret: {secretName: {{ $source.secret | quote }}, defaultMode: 0440{{ $items }}}
{{- end }}
{{- end }}
{{- if .impersonate.enabled }}
- name: impersonation
  projected:
    defaultMode: 0440
    sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3600}
{{- end }}
{{- end }}
{{- end -}}
